"""A run of `python -m detkd.evaluate` in its folder: what it leaves of data and detections, and how that is read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from detkd.boxes import xywh_to_xyxy
from detkd.data.annotations import GroundTruth
from detkd.data.checks import is_number, short
from detkd.data.dataset import DetectionDataset
from detkd.data.identity import images_sha256, truths_sha256
from detkd.disk import sha256_of
from detkd.errors import InputError
from detkd.evaluation.coco import coco_detections
from detkd.runtime.data import open_labelled
from detkd.runtime.run import CONFIG_FILE, RESULTS_FILE, write_json
from detkd.structures import Detection, DetectorSpec

DETECTIONS_FILE = "detections.json"
HASHES = ("detector_sha256", "scored_sha256", "images_sha256", "detections_sha256")


@dataclass(frozen=True)
class ScoredRun:
    """What a run found and what there was to find.

    classes: of the detector; all labels are its. dataset: the images, by index. detections, truths: one an image, xyxy in original pixels.
    results: its results.json. hashes: by the names of ``HASHES``, as the run recorded them and as they are of what was read; None where it
    did not, but that of the detections is always of the file. root: where it found the images, which may not be where they were read.
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    dataset: DetectionDataset
    detections: list[Detection]
    truths: list[GroundTruth]
    results: dict[str, Any]
    hashes: dict[str, str | None]
    root: Path


def data_facts(dataset: DetectionDataset, classes: Sequence[str]) -> dict[str, str]:
    """For results.json: where the images lie, and hashes of them and of their boxes, where they are labelled.

    classes: what labels mean.
    """
    everything = range(len(dataset))
    facts = {
        "data_root": str(dataset.root.resolve()),
        "images_sha256": images_sha256(dataset.record(i) for i in everything),
    }
    if dataset.labelled:
        facts["scored_sha256"] = truths_sha256((dataset.ground_truth(i) for i in everything), classes)
    return facts


def write_detections(folder: Path, detections: Sequence[Detection], dataset: DetectionDataset, classes: Sequence[str]) -> str:
    """Write detections.json in COCO's results format, one entry an image of the data set; gives its sha256."""
    image_ids = [dataset.image_id(i) for i in range(len(dataset))]
    category_ids = dataset.category_ids or {label: label + 1 for label in range(len(classes))}
    write_json(folder / DETECTIONS_FILE, coco_detections(detections, image_ids, category_ids))
    return sha256_of(folder / DETECTIONS_FILE)


def read_scored_run(folder: str | Path, name: str | None = None, root: str | None = None) -> ScoredRun:
    """Read the folder of a run of evaluate, and the boxes of its data set.

    Args:
        name: of the run; None for that of its folder. root: where the images are, if they are no longer where the run found them: in the
            folder of results.json's ``data_root``, else in that of its config.

    Nothing in the config is instantiated: it says where the data is. Raises InputError naming file and entry for a folder of another
    command, one without labels, damaged files, detections of images or categories that the data set does not have, and for detections, boxes
    or images that are not those that the run recorded.
    """
    folder = Path(folder)
    node = _data_node(folder)
    results = _load_json(folder / RESULTS_FILE, dict)
    found = _found_root(node, results)
    node = cast(DictConfig, OmegaConf.merge(node, {"root": str(found) if root is None else root}))
    if not Path(node.root).is_dir():
        raise InputError(
            f"{folder / CONFIG_FILE}: data.root: expected a folder, found none at {node.root}; if it was moved, say data.root=DIR"
        )
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
    hashes = {key: value if isinstance(value := results.get(key), str) else None for key in HASHES}
    there = data_facts(dataset, classes) | {"detections_sha256": sha256_of(folder / DETECTIONS_FILE)}
    _check_hashes(folder, dataset.root.resolve(), hashes, there)
    hashes["detections_sha256"] = there["detections_sha256"]
    return ScoredRun(
        name or folder.resolve().name, folder, classes, dataset, detections, truths, results, hashes, found.resolve()
    )


def _check_hashes(folder: Path, root: Path, recorded: Mapping[str, str | None], there: Mapping[str, str]) -> None:
    """Raise InputError where what was read, from ``folder`` and the data set's ``root``, is not what results.json tells of."""
    for key, place, what in (
        ("detections_sha256", folder / DETECTIONS_FILE, "the detections that the run wrote"),
        ("images_sha256", root, "the images that the run was made on, by names and sizes of files"),
        ("scored_sha256", root, "the boxes that the run was scored against"),
    ):
        if recorded[key] is not None and recorded[key] != there[key]:
            raise InputError(
                f"{place}: expected {what}, found others ({key} is not that of {folder / RESULTS_FILE}); "
                "run `python -m detkd.evaluate` again, or say where the run's data is by data.root=DIR"
            )


def _found_root(node: DictConfig, results: dict[str, Any]) -> Path:
    """Where the run found its images: what was typed may be relative to another folder than this one."""
    known = results.get("data_root")
    return Path(known) if isinstance(known, str) and known and Path(known).is_dir() else Path(node.root)


def _data_node(folder: Path) -> DictConfig:
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
