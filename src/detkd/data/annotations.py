"""COCO annotations: read a json of unknown origin, and trust nothing in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import torch
from torch import Tensor

from detkd.boxes import area_xyxy, clip_xyxy, xywh_to_xyxy, xyxy_to_xywh
from detkd.classes import canonical
from detkd.disk import parse_json
from detkd.errors import InputError
from detkd.structures import Target

OnProblem = Literal["error", "drop"]


class GroundTruth(Target):
    """A target in original pixels for evaluation: also iscrowd (n,) bool and area (n,) float, the json's, in square pixels."""

    iscrowd: Tensor
    area: Tensor


@dataclass(frozen=True)
class Record:
    """One image and what is known of it.

    size: (height, width) in the json, None in a plain folder. truth: None in a plain folder and in a json without annotations.
    """

    image_id: int
    path: Path
    size: tuple[int, int] | None = None
    truth: GroundTruth | None = None


@dataclass(frozen=True)
class Annotations:
    """What a COCO json says: class names in label order, the json's category id of each label it has, and the images."""

    classes: tuple[str, ...]
    category_ids: dict[int, int]
    records: list[Record]


def read_annotations(
    path: Path,
    folders: Sequence[Path],
    classes: Sequence[str] | None = None,
    *,
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
) -> Annotations:
    """Read a COCO json.

    Args:
        path: of the json. folders: where its images may lie, first match counts.
        classes: names in label order; categories map to them by name, where the VOC and COCO names of the same six classes
            (sofa and couch, ...) are one. None takes the json's own, in order of category id.
        on_unknown: a category in use that is not in ``classes`` is an error, or its boxes are dropped with one warning.
        invalid_boxes: a box of no or negative extent, not finite or wholly outside its image is an error, or is dropped
            with one warning. Boxes that overhang their image are clipped either way.

    A json without the key "annotations" (COCO's image_info files of test sets) has records without truth. A missing area is that of
    the box, a missing iscrowd is 0.

    Raises InputError naming the file and the entry for anything else: not json, missing keys, wrong types, ids that repeat or that
    nothing has, images that are missing, and file names that leave the folder (absolute, "..", or by a link).
    """
    return _read(path, folders, classes, on_unknown, invalid_boxes)


def read_boxes(
    path: Path,
    classes: Sequence[str] | None = None,
    *,
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
) -> list[tuple[tuple[int, int], GroundTruth]]:
    """Read the boxes of a COCO json whose images need not be there: of each image its (height, width) and what is in it.

    Arguments and errors are those of :func:`read_annotations`, but file names are not looked at and may be missing. A json without
    the key "annotations" has nothing to read: an empty list.
    """
    records = _read(path, None, classes, on_unknown, invalid_boxes).records
    return [(r.size, r.truth) for r in records if r.size is not None and r.truth is not None]


def coco_json(
    entries: Iterable[tuple[str, list[list[float]], list[int]]], classes: Sequence[str], image_size: tuple[int, int]
) -> dict[str, Any]:
    """COCO annotations of images of one size (height, width); ids of images, annotations and categories are 1-based, in order.

    entries: of each image its file name, boxes xyxy in pixels, and labels.
    """
    height, width = image_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, boxes_xyxy, labels in entries:
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        boxes = torch.tensor(boxes_xyxy, dtype=torch.float64).reshape(-1, 4)
        for bbox, area, label in zip(xyxy_to_xywh(boxes).tolist(), area_xyxy(boxes).tolist(), labels):
            annotation = {"image_id": len(images), "category_id": label + 1, "bbox": bbox, "area": area, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **annotation})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read(
    path: Path,
    folders: Sequence[Path] | None,
    classes: Sequence[str] | None,
    on_unknown: OnProblem,
    invalid_boxes: OnProblem,
) -> Annotations:
    """As :func:`read_annotations`; without folders no image is looked for, and the path of every record is that of the json."""
    content = _entry(_read_json(path), str(path), ("images", "categories"))
    names = _categories(content["categories"], path)
    if classes is None:
        classes = tuple(dict.fromkeys(names[i] for i in sorted(names)))
    known = {canonical(c): label for label, c in enumerate(classes)}
    label_of = {i: known.get(canonical(n)) for i, n in names.items()} | {
        i: classes.index(n) for i, n in names.items() if n in classes
    }
    images = _images(content["images"], path, folders)
    truths: dict[int, GroundTruth] = {}
    if "annotations" in content:
        by_image = _annotations(content["annotations"], path, images, names)
        used = {int(a["category_id"]) for entries in by_image.values() for _, a in entries}
        _check_known(path, classes, {names[i] for i in used if label_of[i] is None}, used, label_of, on_unknown)
        dropped = 0
        for image_id, entries in by_image.items():
            size = images[image_id].size
            assert size is not None
            kept = [(where, a) for where, a in entries if label_of[int(a["category_id"])] is not None]
            truths[image_id], invalid = _truth(kept, size, label_of, invalid_boxes)
            dropped += invalid
        if dropped:
            warnings.warn(f"{path}: left out {dropped} boxes of no extent in their image", stacklevel=3)
    records = [Record(r.image_id, r.path, r.size, truths.get(r.image_id)) for r in images.values()]
    category_ids: dict[int, int] = {}
    for category_id in sorted(names):
        label = label_of[category_id]
        if label is not None:
            category_ids.setdefault(label, category_id)
    return Annotations(tuple(classes), category_ids, records)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a json file, found none that can be read ({error.strerror})") from error
    return parse_json(content, path)


def _categories(entries: Any, path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for where, entry in _entries(entries, path, "categories", ("id", "name")):
        category_id = _integer(entry["id"], f"{where}.id")
        if category_id in names:
            raise InputError(f"{where}: expected category ids that differ, got {category_id} again")
        if not isinstance(entry["name"], str) or not entry["name"]:
            raise InputError(f"{where}.name: expected a name, got {entry['name']!r}")
        names[category_id] = entry["name"]
    return names


def _images(entries: Any, path: Path, folders: Sequence[Path] | None) -> dict[int, Record]:
    records: dict[int, Record] = {}
    resolved = None if folders is None else [folder.resolve() for folder in folders]
    keys: tuple[str, ...] = ("id", "width", "height") if folders is None else ("id", "file_name", "width", "height")
    for where, entry in _entries(entries, path, "images", keys):
        image_id = _integer(entry["id"], f"{where}.id")
        if image_id in records:
            raise InputError(f"{where}: expected image ids that differ, got {image_id} again")
        size = (_integer(entry["height"], f"{where}.height"), _integer(entry["width"], f"{where}.width"))
        if not all(0 < side <= 1_000_000 for side in size):
            raise InputError(f"{where}: expected width and height in pixels, got {size[1]} and {size[0]}")
        file = path if resolved is None else _find_image(entry["file_name"], f"{where}.file_name", resolved)
        records[image_id] = Record(image_id, file, size)
    return records


def _find_image(name: Any, where: str, folders: Sequence[Path]) -> Path:
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected the path of an image, got {name!r}")
    windows = PureWindowsPath(name)  # knows both separators, and drives
    if windows.drive or windows.root or ".." in windows.parts:
        raise InputError(f"{where}: expected a path below the data folder, got {name!r}")
    try:
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        inside = found is not None and any(found.resolve().is_relative_to(folder) for folder in folders)
    except (OSError, ValueError, RuntimeError) as error:  # names no file system can hold; links in a circle
        raise InputError(f"{where}: expected the path of an image, got {name[:100]!r} ({error})") from error
    if found is None:
        raise InputError(f"{where}: expected an image {name!r} in {' or '.join(map(str, folders))}, found none")
    if not inside:
        raise InputError(f"{where}: expected a file below the data folder, but {name!r} is a link that leaves it")
    return found


def _annotations(
    entries: Any, path: Path, images: dict[int, Record], names: dict[int, str]
) -> dict[int, list[tuple[str, dict[str, Any]]]]:
    """Checked entries, with their places, by image id; an image without any has an empty list."""
    by_image: dict[int, list[tuple[str, dict[str, Any]]]] = {i: [] for i in images}
    for where, entry in _entries(entries, path, "annotations", ("image_id", "category_id", "bbox")):
        image_id = _integer(entry["image_id"], f"{where}.image_id")
        if image_id not in images:
            raise InputError(f"{where}.image_id: expected the id of an image in the file, got {image_id}")
        category_id = _integer(entry["category_id"], f"{where}.category_id")
        if category_id not in names:
            raise InputError(f"{where}.category_id: expected one of {_some(sorted(names))}, got {category_id}")
        bbox = entry["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(v) for v in bbox):
            raise InputError(f"{where}.bbox: expected four numbers [x, y, width, height], got {_short(bbox)}")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise InputError(f"{where}.iscrowd: expected 0 or 1, got {_short(entry['iscrowd'])}")
        area = entry.get("area")
        if area is not None and not (_is_number(area) and 0 <= _float(area) < math.inf):
            raise InputError(f"{where}.area: expected a number of square pixels, got {_short(area)}")
        by_image[image_id].append((where, entry))
    return by_image


def _check_known(
    path: Path,
    classes: Sequence[str],
    unknown: set[str],
    used: set[int],
    label_of: dict[int, int | None],
    on_unknown: OnProblem,
) -> None:
    if not unknown:
        return
    message = f"{path}: expected categories among the classes {_some(list(classes))}, found also {_some(sorted(unknown))}"
    if all(label_of[i] is None for i in used):
        raise InputError(f"{message}, and none that is among them")
    if on_unknown == "error":
        raise InputError(f"{message}; on_unknown=drop leaves their boxes out")
    warnings.warn(f"{message}: their boxes are left out", stacklevel=4)


def _truth(
    entries: list[tuple[str, dict[str, Any]]],
    size: tuple[int, int],
    label_of: dict[int, int | None],
    invalid_boxes: OnProblem,
) -> tuple[GroundTruth, int]:
    """The boxes of one image, and how many were dropped."""
    xywh = torch.tensor([[_float(v) for v in a["bbox"]] for _, a in entries], dtype=torch.float64).reshape(-1, 4)
    # the extent is looked at before and after clipping: a negative width could otherwise be clipped into nothing but a zero
    boxes = clip_xyxy(xywh_to_xyxy(xywh), size).float()
    valid = xywh.isfinite().all(-1) & (xywh[:, 2:] > 0).all(-1) & (boxes[:, 2:] > boxes[:, :2]).all(-1)
    if invalid_boxes == "error" and not bool(valid.all()):
        where, entry = entries[int(valid.int().argmin())]
        raise InputError(
            f"{where}.bbox: expected [x, y, width, height] of positive extent inside an image of {size[1]} x {size[0]} pixels, "
            f"got {_short(entry['bbox'])}; invalid_boxes=drop leaves such boxes out"
        )
    kept = [entry for (_, entry), v in zip(entries, valid.tolist()) if v]
    boxes = boxes[valid]
    areas = [_float(a["area"]) if a.get("area") is not None else own for a, own in zip(kept, area_xyxy(boxes).tolist())]
    return GroundTruth(
        boxes=boxes,
        labels=torch.tensor([label_of[int(a["category_id"])] for a in kept], dtype=torch.int64),
        iscrowd=torch.tensor([bool(a.get("iscrowd", 0)) for a in kept], dtype=torch.bool),
        area=torch.tensor(areas, dtype=torch.float32),
    ), len(entries) - len(kept)


def _entries(entries: Any, path: Path, key: str, keys: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(entries, list):
        raise InputError(f"{path}: {key}: expected a list, got {_short(entries)}")
    return [(f"{path}: {key}[{i}]", _entry(entry, f"{path}: {key}[{i}]", keys)) for i, entry in enumerate(entries)]


def _entry(entry: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object with the keys {list(keys)}, got {_short(entry)}")
    if missing := [k for k in keys if k not in entry]:
        raise InputError(f"{where}: expected the keys {list(keys)}, missing are {missing}")
    return entry


def _integer(value: Any, where: str) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(_float(value))
        or int(value) != value
    ):
        raise InputError(f"{where}: expected a whole number, got {_short(value)}")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _float(value: float) -> float:
    """Float of a json number; whole numbers beyond the range of floats are infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def _some(values: Sequence[Any]) -> str:
    return str(list(values)) if len(values) <= 20 else f"{list(values[:20])} and {len(values) - 20} more"
