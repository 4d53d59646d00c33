"""The robustness benchmark of an evaluation: one run for each corruption and severity, each kept in a file of its own."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from detkd.data.dataset import DetectionDataset
from detkd.detectors.checkpoint import fingerprint
from detkd.detectors.protocol import Detector
from detkd.disk import differences, dump_json, parse_json, replace_file, sha256_of
from detkd.errors import InputError
from detkd.evaluation.coco import Samples, Scores, detect, score
from detkd.evaluation.corruptions import CORRUPTIONS, SEVERITIES, check
from detkd.evaluation.robustness import COLUMNS, CorruptedDataset, Robustness
from detkd.runtime.robustness_figure import robustness_figure
from detkd.runtime.run import RESULTS_FILE, check_claim, claim, device_of, output_dir, write_results, write_text
from detkd.runtime.scored_run import DETECTIONS_FILE, data_facts, write_detections
from detkd.runtime.stale import clear

RUNS = "corruptions"  # the folder of the runs' files, in the run's own
CLEAN = ("clean", 0)
Run = tuple[str, int]  # corruption and severity


@dataclass(frozen=True)
class Benchmark:
    """What ``corruptions`` asks for: names and severities without repetition, in the order given, and the seed."""

    names: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0

    @property
    def runs(self) -> list[Run]:
        """The clean run first, then corruption by corruption."""
        return [CLEAN, *((name, severity) for name in self.names for severity in self.severities)]


def benchmark_of(node: Any) -> Benchmark:
    """The benchmark that the node ``corruptions`` describes.

    Raises InputError for unknown keys, names and severities, lists that are empty or name one twice, and a seed that is no whole number.
    """
    known = ("names", "severities", "seed")
    if not isinstance(node, DictConfig) or set(map(str, node)) - set(known):
        raise InputError(f"corruptions: expected some of the keys {', '.join(known)}, found {node}")
    names = _listed(node, "names", Benchmark.names)
    severities = _listed(node, "severities", Benchmark.severities)
    for name in names:
        check(name, SEVERITIES[0])
    for severity in severities:
        check(names[0], severity)
    seed = node.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"corruptions.seed: expected a whole number, found {seed!r}")
    return Benchmark(tuple(names), tuple(severities), seed)


def _listed(node: DictConfig, key: str, default: Sequence[Any]) -> list[Any]:
    value = node.get(key, default)
    values = list(value) if isinstance(value, (ListConfig, tuple)) else []
    if not values:
        raise InputError(f"corruptions.{key}: expected a list of some of {', '.join(map(str, default))}, found {value}")
    if twice := [v for i, v in enumerate(values) if v in values[:i]]:
        raise InputError(f"corruptions.{key}: expected each once, found {twice[0]!r} twice")
    return values


def run_benchmark(cfg: DictConfig, detector: Detector, dataset: DetectionDataset) -> dict[str, Any]:
    """Score the detector on the clean images and under every corruption; write tables, curves and results.json into the run's folder.

    Runs whose file is there already are not made again, so the same command goes on where it was cut off. Of the clean images the folder has
    all that a plain evaluation leaves, detections.json too.

    Raises InputError for images without boxes, for a folder with runs of another detector, data, seed or version of numpy, and for one that is
    finished with corruptions or severities that are not asked for.
    """
    folder, asked = output_dir(), benchmark_of(cfg.corruptions)
    check_claim(cfg, folder)
    check_extent(folder, asked)
    if not dataset.labelled:
        raise InputError(f"{cfg.data.root}: expected images with boxes to score corruptions on, found images alone")
    truths = [dataset.ground_truth(i) for i in range(len(dataset))]
    facts = data_facts(dataset, detector.spec.classes)
    key = run_key(detector, len(dataset), facts, asked.seed)
    scores = read_runs(folder, key)
    if CLEAN in scores and not _kept_detections(folder):
        del scores[CLEAN]
    claim(cfg, folder)
    clear(folder)
    for number, run in enumerate(asked.runs, start=1):
        if run in scores:
            continue
        start = time.monotonic()
        images: Samples = dataset if run == CLEAN else CorruptedDataset(dataset, *run, seed=asked.seed)
        detections = detect(detector, images, cfg.batch_size, device_of(cfg.device), cfg.data.num_workers)
        scored = score(detections, truths, detector.spec.classes)
        if scored.ap is None or scored.ap50 is None:
            raise InputError(
                f"{cfg.data.root}: expected images with boxes to score corruptions on, found none with a box that counts"
            )
        kept = write_detections(folder, detections, dataset, detector.spec.classes) if run == CLEAN else None
        write_run(folder, key, run, scored, kept)
        scores[run] = scored
        took = time.monotonic() - start
        print(
            f"{number}/{len(asked.runs)} {run[0]} {run[1]}: AP {scored.ap:.3f}, AP50 {scored.ap50:.3f} ({took:.1f} s)",
            flush=True,
        )
    result = Robustness(
        scores[CLEAN], {name: {severity: scores[name, severity] for severity in asked.severities} for name in asked.names}
    )
    write_text(folder / "robustness.csv", result.csv())
    write_text(folder / "results.md", result.markdown())
    robustness_figure(result, folder / "robustness.png")
    about = facts | {
        "per_class": {name: scores[CLEAN].per_class.get(name) for name in detector.spec.classes},
        "detector_sha256": key["detector"]["weights_sha256"],
        "detections_sha256": sha256_of(folder / DETECTIONS_FILE),
    }
    results = result.to_dict() | {"seed": asked.seed} | about
    write_results(folder, results)
    print(result.markdown())
    return results


def check_extent(folder: Path, asked: Benchmark) -> None:
    """Raise InputError where results.json is of a corruption or severity that is not asked for: its means would become those of fewer."""
    path = folder / RESULTS_FILE
    if not path.is_file():
        return
    there = parse_json(path.read_bytes(), path).get("corruptions")
    if not isinstance(there, dict) or not all(
        isinstance(of, dict) and isinstance(of.get("severities"), dict) for of in there.values()
    ):
        raise InputError(f"{path}: expected the results of corruptions, found others; choose another out=DIR")
    missing = {
        "names": [name for name in there if name not in asked.names],
        "severities": list(
            dict.fromkeys(s for of in there.values() for s in of["severities"] if s not in map(str, asked.severities))
        ),
    }
    if said := "; ".join(f"corruptions.{key} lacks {', '.join(values)}" for key, values in missing.items() if values):
        raise InputError(
            f"{folder}: expected all that its results have, and more if you like, found less: {said}; choose another out=DIR"
        )


def run_key(detector: Detector, images: int, facts: Mapping[str, str], seed: int) -> dict[str, Any]:
    """What the scores of a run depend on, besides the corruption: the detector, the images and boxes, the seed, and numpy, which draws; json-able.

    facts: of the data, see :func:`~detkd.runtime.scored_run.data_facts`; where it lies does not matter.
    """
    arguments = json.dumps(detector.arguments(), sort_keys=True).encode()
    return {
        "detector": {
            "architecture": type(detector).__name__,
            "arguments_sha256": hashlib.sha256(arguments).hexdigest(),
            "weights_sha256": fingerprint(detector),
        },
        "data": {"images": images, **{name: facts[name] for name in ("images_sha256", "scored_sha256")}},
        "seed": seed,
        "versions": {"numpy": np.__version__},
    }


def write_run(folder: Path, key: Mapping[str, Any], run: Run, scores: Scores, detections_sha256: str | None = None) -> None:
    """Write the file of one run, whole or not at all.

    detections_sha256: of its detections.json, where it has one.
    """
    content = {"key": dict(key), "corruption": run[0], "severity": run[1], "scores": asdict(scores)}
    more = {} if detections_sha256 is None else {"detections_sha256": detections_sha256}
    replace_file(_path(folder, run), dump_json(content | more))


def _kept_detections(folder: Path) -> bool:
    """Whether detections.json is that of the clean run."""
    path = folder / DETECTIONS_FILE
    known = parse_json(_path(folder, CLEAN).read_bytes(), _path(folder, CLEAN)).get("detections_sha256")
    return path.is_file() and sha256_of(path) == known


def read_runs(folder: Path, key: Mapping[str, Any]) -> dict[Run, Scores]:
    """The scores of the runs that are in the folder already.

    Raises InputError naming the file, and the keys that differ, for a run of another detector, data, seed or version of numpy, and for a file
    that is damaged.
    """
    known = [CLEAN, *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    found: dict[Run, Scores] = {}
    for run in known:
        path = _path(folder, run)
        if not path.is_file():
            continue
        content = parse_json(path.read_bytes(), path)
        if differs := list(differences(content.get("key"), dict(key))):
            raise InputError(
                f"{path}: expected a run of this detector, data, seed and numpy, found another's ({'; '.join(differs)}); "
                "choose another out=DIR"
            )
        found[run] = _scores(content, run, path)
    return found


def _scores(content: Mapping[str, Any], run: Run, path: Path) -> Scores:
    """The scores in a run's file; only what a table can show of them is trusted."""
    values, place = content.get("scores"), (content.get("corruption"), content.get("severity"))
    numbers = [values.get(key) for key in COLUMNS] if isinstance(values, dict) else []
    per_class = values.get("per_class", {}) if isinstance(values, dict) else None
    parts = [*numbers, *per_class.values()] if isinstance(per_class, dict) else [math.nan]
    sound = all(v is None or (isinstance(v, float) and 0 <= v <= 1) for v in parts) and None not in numbers[:2]
    if place != run or not isinstance(values, dict) or not sound or not isinstance(values.get("images"), int):
        raise InputError(f"{path}: expected the scores of {run[0]} at severity {run[1]}, found something else; remove the file")
    return Scores(**dict(zip(COLUMNS, numbers)), images=values["images"], per_class=dict(per_class or {}))


def _path(folder: Path, run: Run) -> Path:
    return folder / RUNS / (f"{run[0]}_{run[1]}.json" if run != CLEAN else "clean.json")
