"""A run of `python -m detkd.evaluate`, read back from its folder: its detections beside the boxes that they were scored against."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from detkd.boxes import xywh_to_xyxy
from detkd.data.annotations import GroundTruth
from detkd.data.checks import is_number, short
from detkd.data.dataset import DetectionDataset
from detkd.errors import InputError
from detkd.runtime.data import open_labelled
from detkd.runtime.run import CONFIG_FILE, RESULTS_FILE
from detkd.structures import Detection, DetectorSpec

DETECTIONS_FILE = "detections.json"


@dataclass(frozen=True)
class ScoredRun:
    """What a run found and what there was to find.

    classes: of the detector; all labels are its. dataset: the images, by index. detections, truths: one an image, xyxy in original pixels.
    results: its results.json.
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    dataset: DetectionDataset
    detections: list[Detection]
    truths: list[GroundTruth]
    results: dict[str, Any]


def read_scored_run(folder: str | Path, name: str | None = None, root: str | None = None) -> ScoredRun:
    """Read the folder of a run of evaluate, and the boxes of its data set.

    Args:
        name: of the run; None for that of its folder. root: where the images are, if they are no longer where the run's config says.

    Nothing in the config is instantiated: it says where the data is. Raises InputError naming file and entry for a folder of another
    command, one without labels, damaged files, or detections of images or categories that the data set does not have.
    """
    folder = Path(folder)
    node = _data_node(folder, root)
    results = _load_json(folder / RESULTS_FILE, dict)
    if not isinstance(results.get("per_class"), dict) or not results["per_class"]:
        raise InputError(
            f"{folder}: expected a run of `python -m detkd.evaluate` on images with boxes, found results without per_class"
        )
    classes = tuple(results["per_class"])
    dataset = open_labelled(node, DetectorSpec(classes, (32, 32)))
    if not dataset.labelled:
        raise InputError(f"{dataset.root}: expected annotations, found images alone")
    ids = [dataset.image_id(i) for i in range(len(dataset))]
    if len(set(ids)) < len(ids):
        raise InputError(
            f"{folder / CONFIG_FILE}: data.length: expected each image once, found {len(ids)} of {len(set(ids))} images"
        )
    if results.get("images") != len(ids):
        raise InputError(
            f"{folder / RESULTS_FILE}: expected results on the {len(ids)} images of {dataset.root}, found {results.get('images')}"
        )
    detections = _detections(folder / DETECTIONS_FILE, ids, dataset.category_ids)
    truths = [dataset.ground_truth(i) for i in range(len(dataset))]
    return ScoredRun(name or folder.resolve().name, folder, classes, dataset, detections, truths, results)


def _data_node(folder: Path, root: str | None) -> DictConfig:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: expected the folder of a run of `python -m detkd.evaluate`, found none ({CONFIG_FILE} is missing)"
        )
    try:
        config = OmegaConf.load(path)
        node = config.get("data") if isinstance(config, DictConfig) else None
    except Exception as error:  # whatever a damaged file raises
        raise InputError(f"{path}: expected the config of a run, found {type(error).__name__}: {error}") from None
    if not isinstance(node, DictConfig) or not isinstance(node.get("root"), str) or not isinstance(node.get("format"), str):
        raise InputError(f"{path}: expected the config of a run of `python -m detkd.evaluate`, found one without data.root")
    if root is not None:
        node = cast(DictConfig, OmegaConf.merge(node, {"root": root}))
    if not Path(node.root).is_dir():
        raise InputError(f"{path}: data.root: expected a folder, found none at {node.root}; if it was moved, say data.root=DIR")
    return node


def _load_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected json of a finished run, found {type(error).__name__}: {error}") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: expected a json {kind.__name__}, found {type(value).__name__}")
    return value


def _detections(path: Path, image_ids: list[int], category_ids: dict[int, int]) -> list[Detection]:
    number_of = {image_id: number for number, image_id in enumerate(image_ids)}
    label_of = {category: label for label, category in category_ids.items()}
    rows: list[list[tuple[list[float], int, float]]] = [[] for _ in image_ids]
    for place, entry in enumerate(_load_json(path, list)):
        where = f"{path}: entry {place}"
        try:
            image_id, category, bbox, score = (entry[k] for k in ("image_id", "category_id", "bbox", "score"))
            known = image_id in number_of and category in label_of
        except (KeyError, TypeError):
            raise InputError(f"{where}: expected image_id, category_id, bbox and score, found {short(entry)}") from None
        if not known:
            raise InputError(f"{where}: expected an image and a category of the data set, found {image_id} and {category}")
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(_finite(v) for v in [*bbox, score]):
            raise InputError(f"{where}: expected four numbers as bbox and one as score, found {short(bbox)} and {short(score)}")
        rows[number_of[image_id]].append((bbox, label_of[category], score))
    return [
        {
            "boxes": xywh_to_xyxy(torch.tensor([r[0] for r in of], dtype=torch.float64).reshape(-1, 4)).float(),
            "labels": torch.tensor([r[1] for r in of], dtype=torch.int64),
            "scores": torch.tensor([r[2] for r in of], dtype=torch.float32),
        }
        for of in rows
    ]


def _finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
