"""Which student came from which set, and which set from which teacher: by the hashes that runs leave, else by where files lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detkd.detectors.checkpoint import fingerprint_file
from detkd.errors import InputError
from detkd.runtime.report.blocks import Cell, Table, is_number, text_of
from detkd.runtime.report.runs import Run, resolved, select
from detkd.runtime.report.scores import set_name


@dataclass
class Node:
    """A detector or a set of images, or several in one.

    sha256: None where it is not known. runs: those that made it, or scored it. notes: lines under its name. members: the names of several.
    """

    key: str
    kind: Literal["detector", "set"]
    name: str
    sha256: str | None = None
    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edge:
    """What came from what. by: "hash" where a run recorded the checksum of the source; "path" where only its place says so."""

    source: str
    target: str
    what: str
    by: Literal["hash", "path"]


@dataclass
class Lineage:
    """Nodes by key, edges between them, and what does not fit together."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """The edges as rows."""
        rows = tuple(
            (self.nodes[e.target].name, e.what, self.nodes[e.source].name, e.by, self.nodes[e.source].sha256)
            for e in self.edges
        )
        return Table("Lineage", ("this", "was", "that", "linked by", "sha256 of that"), rows)


def trace(runs: Sequence[Run], hash_file: Callable[[Path], str] = fingerprint_file) -> Lineage:
    """The lineage of runs.

    hash_file: gives the fingerprint of a checkpoint, for students of runs that did not record it.
    """
    lineage = Lineage()
    for run in runs:
        if run.manifest is not None:
            key = f"set:{run.set_sha256}"
            lineage.nodes.setdefault(key, Node(key, "set", run.name, run.set_sha256)).runs.append(run)
        if run.kind == "distill":
            _student(lineage, run, hash_file)
    for run in runs:
        if run.manifest is not None:
            _trace_set(lineage, run)
        if run.kind == "distill":
            _trace_student(lineage, run)
        elif run.kind not in ("invert", "tile") and run.config.get("teacher"):
            _trace_scores(lineage, run)
    return lineage


def layers(lineage: Lineage) -> list[list[Node]]:
    """Nodes by the longest way that leads to them, in order of appearance; what came from nothing stands just before what came of it."""
    depth = dict.fromkeys(lineage.nodes, 0)
    for _ in lineage.nodes:  # longest ways settle in as many rounds as there are nodes; a circle cannot keep it from ending
        for edge in lineage.edges:
            depth[edge.target] = min(max(depth[edge.target], depth[edge.source] + 1), len(depth) - 1)
    for key in set(depth) - {edge.target for edge in lineage.edges}:
        depth[key] = min((depth[edge.target] - 1 for edge in lineage.edges if edge.source == key), default=0)
    found: list[list[Node]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for key, node in lineage.nodes.items():
        found[depth[key]].append(node)
    return [layer for layer in found if layer]


def _student(lineage: Lineage, run: Run, hash_file: Callable[[Path], str]) -> None:
    if run.results is None:
        return
    sha256 = run.found.get("student_sha256")
    name = str(run.found.get("student") or "student.safetensors")
    path = resolved(run.folder / Path(name).name)  # no file of another folder
    try:
        if not isinstance(sha256, str) and path is not None and path.is_file():
            sha256 = hash_file(path)
    except (InputError, OSError) as error:
        lineage.warnings.append(f"{run.name}: {error}")
    node = _detector(lineage, sha256 if isinstance(sha256, str) else None, run.name, run.name)
    node.runs.append(run)
    if is_number(run.found.get("ap50")):
        node.notes.append(f"AP50 {text_of(run.found['ap50'])} on {set_name(run)}")


def _trace_set(lineage: Lineage, run: Run) -> None:
    assert run.manifest is not None
    target = f"set:{run.set_sha256}"
    recipe = run.manifest["recipe"] if isinstance(run.manifest["recipe"], Mapping) else {}
    teacher: str = run.manifest["teacher_sha256"]
    images = run.manifest.get("images")
    lineage.nodes[target].notes.append("unfinished" if images is None else f"{images} images")
    if recipe.get("kind") == "tiling":
        source = select(recipe, "source.manifest_sha256")
        known = isinstance(source, str) and f"set:{source}" in lineage.nodes
        node = lineage.nodes[f"set:{source}"] if known else _images(lineage, run, source if isinstance(source, str) else None)
        lineage.edges.append(Edge(node.key, target, "tiled from", "hash" if node.sha256 else "path"))
    elif teacher:
        node = _detector(lineage, teacher, detector_name(run.config.get("teacher")))
        lineage.edges.append(Edge(node.key, target, "inverted from", "hash"))


def _trace_student(lineage: Lineage, run: Run) -> None:
    student = next((node for node in lineage.nodes.values() if node.kind == "detector" and run in node.runs), None)
    if student is None:
        return
    teacher = run.found.get("teacher_sha256")
    if isinstance(teacher, str):
        node = _detector(lineage, teacher, detector_name(run.config.get("teacher")))
        lineage.edges.append(Edge(node.key, student.key, "taught by", "hash"))
    recorded = run.found.get("data_sha256")
    data = lineage.nodes.get(f"set:{recorded}") if isinstance(recorded, str) else None
    here = _set_at(lineage, select(run.config, "data.root"))
    if data is None and here is not None and isinstance(recorded, str):
        lineage.warnings.append(
            f"{run.name}: the set in {here.name} is not the one that was trained on: it has another checksum"
        )
        here = None
    by: Literal["hash", "path"] = "hash" if isinstance(recorded, str) else "path"
    data = data or here or _images(lineage, run, recorded if isinstance(recorded, str) else None)
    lineage.edges.append(Edge(data.key, student.key, "trained on", by))
    of = next((e.source for e in lineage.edges if e.target == data.key and e.what == "inverted from"), None)
    if of is not None and isinstance(teacher, str) and of != f"detector:{teacher}":
        lineage.warnings.append(f"{run.name}: its set {data.name} was made of another detector than its teacher")


def _trace_scores(lineage: Lineage, run: Run) -> None:
    """A detector that was scored: its score goes under its name, and where it has none yet it gets a node."""
    sha256 = run.found.get("detector_sha256")
    path = select(run.config, "teacher.path")
    teacher = run.config.get("teacher")
    known: Node | None = None
    place = resolved(path) if isinstance(path, str) else None
    if isinstance(sha256, str):
        known = _detector(lineage, sha256, detector_name(teacher))
    elif place is not None:
        known = next(
            (n for n in lineage.nodes.values() if n.kind == "detector" and any(r.folder == place.parent for r in n.runs)), None
        )
    if known is None:  # nodes of other places or settings stay apart, though their short names may be the same
        name = str(path) if place is not None else detector_name(teacher)
        known = _detector(lineage, None, name, f"of {place or json.dumps(teacher, sort_keys=True, default=str)}")
    if run not in known.runs:
        known.runs.append(run)
    if is_number(run.found.get("ap50")):
        known.notes.append(f"AP50 {text_of(run.found['ap50'])} on {set_name(run)}")


def _detector(lineage: Lineage, sha256: str | None, name: str, unknown: str | None = None) -> Node:
    key = f"detector:{sha256 or unknown}"
    return lineage.nodes.setdefault(key, Node(key, "detector", name, sha256))


def _images(lineage: Lineage, run: Run, sha256: str | None) -> Node:
    """Images that no run of the report made."""
    root = select(run.config, "data.root")
    target = str(select(run.config, "data._target_") or "images")
    name = Path(root).name if isinstance(root, str) and root else target.rsplit(".", 1)[-1].removesuffix("_datamodule")
    key = f"set:{sha256}" if sha256 else f"images:{root or sorted(map(str, _items(run.config.get('data'))))}"
    drawn = select(run.config, "data.train_images") or select(run.config, "data.images")
    seed = next((v for k in ("train_seed", "noise_seed") if (v := select(run.config, f"data.{k}")) is not None), None)
    notes = [f"{drawn} images, seed {seed}"] if drawn is not None and not root else ["not of these runs"]
    return lineage.nodes.setdefault(key, Node(key, "set", name, sha256, notes=notes))


def _items(value: Any) -> list[tuple[Any, Cell]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _set_at(lineage: Lineage, root: Any) -> Node | None:
    if not isinstance(root, str) or not root:
        return None
    place = resolved(root)
    return next((n for n in lineage.nodes.values() if n.kind == "set" and any(r.folder == place for r in n.runs)), None)


def detector_name(node: Any) -> str:
    """What a config calls a detector: its file, its architecture, or the last part of what builds it."""
    for key in ("weights.name", "detector.cfg.name"):
        if isinstance(value := select(node, key), str) and value:
            return Path(value).stem
    for key in ("path", "name", "weights", "detector.architecture", "detector._target_", "_target_"):
        value = select(node, key)
        if isinstance(value, str) and value:
            parts = Path(value).parts if "/" in value else (value,)
            return "/".join(parts[-2:]) if key == "path" else parts[-1].rsplit(".", 1)[-1]
    return "a detector"
