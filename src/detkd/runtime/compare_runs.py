"""The runs of `python -m detkd.compare`: read, and brought to the same images, boxes and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from detkd.classes import canonical, label_lookup
from detkd.data.annotations import Record
from detkd.errors import InputError
from detkd.evaluation.matching import Scene, make_scene
from detkd.runtime.scored_run import ScoredRun, read_scored_run
from detkd.structures import Detection

_FIELDS = ("boxes", "labels", "iscrowd", "ignore", "area")
_NAMED = 10  # classes that a sentence names before it counts


@dataclass(frozen=True)
class Matched:
    """Detections of all runs beside the same boxes.

    classes: those that all detectors know, in the order and the spelling of the first run; all labels are theirs. left_out: classes with a box
    that not all of them know. scenes: one a run. records: the images, in the order of the first run. supercategories: by label. notes: what to
    know of the numbers, in sentences.
    """

    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    scenes: list[Scene]
    records: list[Record]
    supercategories: dict[int, str]
    notes: tuple[str, ...]


def read_runs(node: Any, root: str | None = None) -> list[ScoredRun]:
    """The runs of ``runs``, a list of folders or folders by name, the baseline first.

    root: where the data set is, if it is no longer where the runs' configs say. Raises InputError for fewer than two, and for two of one name.
    """
    if isinstance(node, DictConfig):
        folders = [(str(name), str(folder)) for name, folder in node.items()]
    else:
        given = [str(folder) for folder in node] if isinstance(node, ListConfig) else [] if node is None else [str(node)]
        folders = [(Path(folder).resolve().name, folder) for folder in given]
    if len(folders) < 2:
        raise InputError(f"runs: expected two or more folders, like 'runs=[runs/a,runs/b]', found {len(folders)}")
    if len({name for name, _ in folders}) < len(folders):
        raise InputError(
            f"runs: expected folders of different names, found {[folder for _, folder in folders]}; "
            f"give names, like 'runs={{a: {folders[0][1]}, b: {folders[1][1]}}}'"
        )
    return [read_scored_run(folder, name, root) for name, folder in folders]


def match_runs(runs: Sequence[ScoredRun]) -> Matched:
    """Bring runs to the images of the first, by id, and to the classes that all detectors know, by name.

    Detections and boxes of other classes are dropped, and it is noted where there are boxes. Raises InputError where images or boxes of two
    runs differ, and where no class is common to all; it says what differs.
    """
    first = runs[0]
    classes = _common(runs)
    ids = [first.dataset.image_id(i) for i in range(len(first.dataset))]
    truths: list[Mapping[str, Tensor]] = []
    scenes = []
    for run in runs:
        order = _order(first, run, ids)
        lookup = label_lookup(classes)
        to = torch.tensor([-1 if (label := lookup(name)) is None else label for name in run.classes])
        own: list[Mapping[str, Tensor]] = [_relabelled(run.truths[i], to) for i in order]
        truths = truths or own
        _check_boxes(first, run, ids, truths, own)
        detections = [cast(Detection, _relabelled(run.detections[i], to)) for i in order]
        scenes.append(make_scene(detections, truths))
    left_out = _left_out(runs, classes)
    said = f"Scored on the classes that all detectors know ({len(classes)}), without boxes of {_some(left_out)}."
    notes = [said] if left_out else []
    label_of = label_lookup(classes)
    return Matched(
        classes=classes,
        left_out=left_out,
        scenes=scenes,
        records=[first.dataset.record(i) for i in range(len(ids))],
        supercategories={
            label: kind
            for theirs, kind in first.dataset.supercategories.items()
            if (label := label_of(first.classes[theirs])) is not None
        },
        notes=(*notes, *_pixels(runs)),
    )


def _common(runs: Sequence[ScoredRun]) -> tuple[str, ...]:
    lookups = [label_lookup(run.classes) for run in runs]
    common = tuple(name for name in runs[0].classes if all(of(name) is not None for of in lookups))
    if not common:
        known = "; ".join(f"{run.name} knows {_some(run.classes)}" for run in runs)
        raise InputError(f"runs: expected detectors with a class in common, found none: {known}")
    return common


def _left_out(runs: Sequence[ScoredRun], classes: Sequence[str]) -> tuple[str, ...]:
    kept = {canonical(name) for name in classes}
    found: dict[str, str] = {}
    for run in runs:
        present = {int(label) for truth in run.truths for label in truth["labels"]}
        for label in sorted(present):
            found.setdefault(canonical(run.classes[label]), run.classes[label])
    return tuple(name for known, name in found.items() if known not in kept)


def _order(first: ScoredRun, run: ScoredRun, ids: Sequence[int]) -> list[int]:
    """Of each image of the first run its index in another."""
    index_of = {run.dataset.image_id(i): i for i in range(len(run.dataset))}
    if index_of.keys() != set(ids):
        both = len(index_of.keys() & set(ids))
        raise InputError(f"{_where(first, run)}: {len(ids)} and {len(index_of)} images, {both} of them in both")
    return [index_of[image_id] for image_id in ids]


def _check_boxes(
    first: ScoredRun,
    run: ScoredRun,
    ids: Sequence[int],
    mine: Sequence[Mapping[str, Tensor]],
    theirs: Sequence[Mapping[str, Tensor]],
) -> None:
    for image_id, one, other in zip(ids, mine, theirs):
        if not all(torch.equal(one[key], other[key]) for key in _FIELDS):
            raise InputError(f"{_where(first, run)}: the boxes of image {image_id} differ")


def _pixels(runs: Sequence[ScoredRun]) -> list[str]:
    """What is known of whether all runs looked at the same files. Raises InputError where it is known that two did not."""
    hashes = [run.hashes["images_sha256"] for run in runs]
    known = [(run, value) for run, value in zip(runs, hashes) if value is not None]
    for run, value in known[1:]:
        if value != known[0][1]:
            raise InputError(f"{_where(known[0][0], run)}: the images have other names or sizes of files (images_sha256)")
    if len(known) < len(runs) and len({run.root for run in runs}) > 1:
        unknown = [run.name for run, value in zip(runs, hashes) if value is None]
        return [
            f"Folders differ, and {_some(unknown)} did not record images_sha256: whether all saw the same pixels is not known."
        ]
    return []


def _where(first: ScoredRun, run: ScoredRun) -> str:
    """The beginning of a message, with the folders that were opened."""
    one, other = (f"{of.name} ({of.dataset.root.resolve()})" for of in (first, run))
    return f"runs: expected runs on one data set, found {one} and {other}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _relabelled(boxes: Mapping[str, Any], to: Tensor) -> dict[str, Tensor]:
    labels = to[boxes["labels"]]
    kept = labels >= 0
    return {name: (labels if name == "labels" else value)[kept] for name, value in boxes.items()}
