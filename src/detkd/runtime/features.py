"""The students, images and files of `python -m detkd.features`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from detkd.data.dataset import DetectionDataset
from detkd.detectors.checkpoint import load_checkpoint
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.evaluation.feature_comparison import Comparison
from detkd.runtime.data import open_labelled
from detkd.runtime.run import write_text
from detkd.structures import Target


def load_students(node: Any) -> dict[str, Detector]:
    """The detectors of ``students``, a file, a list of files or files by name; a list's names are those of files or folders.

    Raises InputError without any and where two have one name.
    """
    if isinstance(node, DictConfig):
        paths = {str(name): str(path) for name, path in node.items()}
    else:
        files = [str(path) for path in node] if isinstance(node, ListConfig) else [] if node is None else [str(node)]
        paths = {student_name(Path(path)): path for path in files}
        if len(paths) < len(files):
            raise InputError(
                f"students: expected files of different names, found {files}; give names, like students={{a: {files[0]}, ...}}"
            )
    if not paths:
        raise InputError("students: expected checkpoints, like students=[a.safetensors,b.safetensors], found none")
    return {name: load_checkpoint(path) for name, path in paths.items()}


def student_name(path: Path) -> str:
    """What to call a checkpoint: its file, or of the student.safetensors of a run the run's folder."""
    return path.resolve().parent.name if path.name == "student.safetensors" else path.stem


def read_samples(cfg: DictConfig, students: Mapping[str, Detector], device: str) -> Iterator[tuple[Tensor, Target | None]]:
    """The images of ``data.root`` at the students' size on ``device``, evenly spaced and none twice, with their boxes.

    Raises InputError at once where there is no folder that can be read.
    """
    if cfg.data.get("root") is None:
        raise InputError("data.root: expected a folder of images, like data.root=DIR, found none")
    for key in ("holdout", "num_workers"):
        if cfg.data[key]:
            raise InputError(
                f"data.{key}: expected 0, since images are looked at one by one and none is kept out, found {cfg.data[key]}"
            )
    spec = next(iter(students.values())).spec
    dataset = open_labelled(cast(DictConfig, OmegaConf.merge(cfg.data, {"length": None})), spec)
    count = len(dataset)
    taken = count if cfg.data.length is None else min(cfg.data.length, count)
    if taken < 1:
        raise InputError(f"data.length: expected at least 1, found {cfg.data.length}")
    return (_sample(dataset, number * count // taken, device) for number in range(taken))


def _sample(dataset: DetectionDataset, index: int, device: str) -> tuple[Tensor, Target | None]:
    sample = dataset[index]
    target = sample["target"]
    if target is not None:
        target = {"boxes": target["boxes"].to(device), "labels": target["labels"].to(device)}
    return sample["image"].to(device).float() / 255, target


def write_tables(folder: Path, compared: Mapping[str, Comparison]) -> None:
    """Write channel_distance.csv and gradient_norm.csv; a region without a cell leaves its column empty."""
    distances = [
        [name, channel, *map(_text, pair)]
        for name, of in compared.items()
        for channel, pair in enumerate(zip(*(part.tolist() for part in of.distance.means())))
    ]
    _write_csv(folder / "channel_distance.csv", ["student", "channel", "object", "background"], distances)
    norms = [
        [name, level, *(_text(part.item()) for part in sums.means())]
        for name, of in compared.items()
        for level, sums in of.gradients.items()
    ]
    _write_csv(folder / "gradient_norm.csv", ["student", "level", "object", "background"], norms)


def summarise(compared: Mapping[str, Comparison], images: int) -> dict[str, Any]:
    """For results.json: of each student the means over channels at the level; null for a region without a cell."""
    students = {}
    for name, of in compared.items():
        distance = [_value(part.mean().item()) for part in of.distance.means()]
        gradient = [_value(part.item()) for part in of.gradients[of.level].means()]
        students[name] = {
            "level": of.level,
            "distance": dict(zip(("object", "background"), distance)),
            "gradient_norm": dict(zip(("object", "background"), gradient)),
        }
    return {"images": images, "students": students}


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def _value(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
