"""COCO annotations: read a json of unknown origin, and trust nothing in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkd.boxes import area_xyxy, clip_xyxy, xywh_to_xyxy, xyxy_to_xywh
from detkd.classes import label_lookup
from detkd.data import checks
from detkd.data.checks import OnProblem
from detkd.disk import parse_json
from detkd.errors import InputError
from detkd.structures import Target


class GroundTruth(Target):
    """A target in original pixels for evaluation.

    iscrowd: (n,) bool, a group of objects in one box (COCO). area: (n,) float, the json's, in square pixels. ignore: (n,) bool, an
    object that counts neither when it is found nor when it is missed (VOC's difficult ones).
    """

    iscrowd: Tensor
    area: Tensor
    ignore: Tensor


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
    """What a COCO json says: class names in label order, the json's category id of each label it has, and the images.

    supercategories: by label, of labels that have one; "none" and the empty name, which some tools write, are none.
    """

    classes: tuple[str, ...]
    category_ids: dict[int, int]
    records: list[Record]
    supercategories: dict[int, str] = field(default_factory=dict)


def read_annotations(
    path: Path,
    folders: Sequence[Path],
    classes: Sequence[str] | None = None,
    *,
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
    proxy: bool = False,
) -> Annotations:
    """Read a COCO json.

    Args:
        path: of the json. folders: where its images may lie, first match counts.
        classes: names in label order; categories map to them by name, where the VOC and COCO names of the same six classes
            (sofa and couch, ...) are one. None takes the json's own, in order of category id.
        on_unknown: a category in use that is not in ``classes`` is an error, or its boxes are dropped with one warning.
        invalid_boxes: a box of no or negative extent, not finite or wholly outside its image is an error, or is dropped
            with one warning. Boxes that overhang their image are clipped either way.
        proxy: only the images matter, so boxes stop nothing: invalid ones are dropped, and where categories do not fit, the images
            have no truth and ``classes`` are the json's own; either with a warning. Other faults remain errors.

    A json without the key "annotations" (COCO's image_info files of test sets) has records without truth. A missing area is that of
    the box, a missing iscrowd is 0.

    Raises InputError naming the file and the entry for anything else: not json, missing keys, wrong types, ids that repeat or that
    nothing has, images that are missing, and file names that leave the folder (absolute, "..", or by a link).
    """
    return _read(path, folders, classes, on_unknown, "drop" if proxy else invalid_boxes, proxy)


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
    proxy: bool = False,
) -> Annotations:
    """As :func:`read_annotations`; without folders no image is looked for, and the path of every record is that of the json."""
    content = checks.entry(_read_json(path), str(path), ("images", "categories"))
    names = _categories(content["categories"], path)
    own = tuple(dict.fromkeys(names[i] for i in sorted(names)))
    classes = own if classes is None else classes
    lookup = label_lookup(classes)
    label_of = {i: lookup(name) for i, name in names.items()}
    images = _images(content["images"], path, folders)
    truths: dict[int, GroundTruth] = {}
    if "annotations" in content:
        by_image = _annotations(content["annotations"], path, images, names)
        used = {int(a["category_id"]) for entries in by_image.values() for _, a in entries}
        unknown_ids = {i for i in used if label_of[i] is None}
        unknown = {names[i] for i in unknown_ids}
        if not checks.check_known(str(path), classes, unknown, len(unknown_ids) < len(used), on_unknown, proxy=proxy):
            return Annotations(own, {}, list(images.values()))
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
    above = {entry["id"]: str(entry.get("supercategory") or "none").strip() for entry in content["categories"]}
    supercategories = {label: above[i] for label, i in category_ids.items() if above[i] not in ("", "none")}
    return Annotations(tuple(classes), category_ids, records, supercategories)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a json file, found none that can be read ({error.strerror})") from error
    return parse_json(content, path)


def _categories(entries: Any, path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for where, entry in checks.entries(entries, f"{path}: categories", ("id", "name")):
        category_id = checks.integer(entry["id"], f"{where}.id")
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
    for where, entry in checks.entries(entries, f"{path}: images", keys):
        image_id = checks.integer(entry["id"], f"{where}.id")
        if image_id in records:
            raise InputError(f"{where}: expected image ids that differ, got {image_id} again")
        size = checks.image_size(entry["height"], entry["width"], where)
        file = path if resolved is None else checks.find_image(entry["file_name"], f"{where}.file_name", resolved)
        records[image_id] = Record(image_id, file, size)
    return records


def _annotations(
    entries: Any, path: Path, images: dict[int, Record], names: dict[int, str]
) -> dict[int, list[tuple[str, dict[str, Any]]]]:
    """Checked entries, with their places, by image id; an image without any has an empty list."""
    by_image: dict[int, list[tuple[str, dict[str, Any]]]] = {i: [] for i in images}
    for where, entry in checks.entries(entries, f"{path}: annotations", ("image_id", "category_id", "bbox")):
        image_id = checks.integer(entry["image_id"], f"{where}.image_id")
        if image_id not in images:
            raise InputError(f"{where}.image_id: expected the id of an image in the file, got {image_id}")
        category_id = checks.integer(entry["category_id"], f"{where}.category_id")
        if category_id not in names:
            raise InputError(f"{where}.category_id: expected one of {checks.some(sorted(names))}, got {category_id}")
        bbox = entry["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(checks.is_number(v) for v in bbox):
            raise InputError(f"{where}.bbox: expected four numbers [x, y, width, height], got {checks.short(bbox)}")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise InputError(f"{where}.iscrowd: expected 0 or 1, got {checks.short(entry['iscrowd'])}")
        area = entry.get("area")
        if area is not None and not (checks.is_number(area) and 0 <= checks.to_float(area) < math.inf):
            raise InputError(f"{where}.area: expected a number of square pixels, got {checks.short(area)}")
        by_image[image_id].append((where, entry))
    return by_image


def _truth(
    entries: list[tuple[str, dict[str, Any]]],
    size: tuple[int, int],
    label_of: dict[int, int | None],
    invalid_boxes: OnProblem,
) -> tuple[GroundTruth, int]:
    """The boxes of one image, and how many were dropped."""
    xywh = torch.tensor([[checks.to_float(v) for v in a["bbox"]] for _, a in entries], dtype=torch.float64).reshape(-1, 4)
    return checked_truth(
        xywh_to_xyxy(xywh),
        [label_of[int(a["category_id"])] for _, a in entries],
        size,
        invalid_boxes,
        lambda i: (f"{entries[i][0]}.bbox", f"{checks.short(entries[i][1]['bbox'])} (x, y, width, height)"),
        iscrowd=[bool(a.get("iscrowd", 0)) for _, a in entries],
        areas=[None if a.get("area") is None else checks.to_float(a["area"]) for _, a in entries],
    )


def checked_truth(
    boxes_xyxy: Tensor,
    labels: Sequence[int | None],
    size: tuple[int, int],
    invalid_boxes: OnProblem,
    describe: Callable[[int], tuple[str, str]],
    *,
    iscrowd: Sequence[bool] | None = None,
    ignore: Sequence[bool] | None = None,
    areas: Sequence[float | None] | None = None,
) -> tuple[GroundTruth, int]:
    """Clip the boxes of one image to it and look for those without extent; returns the truth and how many boxes were dropped.

    Args:
        boxes_xyxy: (n, 4) float64 in pixels, as the file says. labels: one a box. size: (height, width) of the image in pixels.
        invalid_boxes: see :func:`read_annotations`.
        describe: of a box's number, its place in the file and what stands there, for the message.
        iscrowd, ignore: one a box; None: no box is. areas: square pixels; None where it is that of the clipped box.

    Raises InputError naming the first box without extent, where ``invalid_boxes`` is "error".
    """
    boxes = clip_xyxy(boxes_xyxy, size).float()
    # the extent is looked at before and after clipping: a box turned inside out can overhang its image on both sides
    extent = [(b[:, 2:] > b[:, :2]).all(-1) for b in (boxes_xyxy, boxes)]
    valid = boxes_xyxy.isfinite().all(-1) & extent[0] & extent[1]
    if invalid_boxes == "error" and not bool(valid.all()):
        place, found = describe(int(valid.int().argmin()))
        raise InputError(
            f"{place}: expected a box of positive extent inside an image of {size[1]} x {size[0]} pixels, got {found}; "
            "invalid_boxes=drop leaves such boxes out"
        )
    count = len(valid)
    own = area_xyxy(boxes).tolist()
    area = own if areas is None else [mine if said is None else said for said, mine in zip(areas, own)]

    def flags(given: Sequence[bool] | None) -> Tensor:
        return torch.zeros(count, dtype=torch.bool) if given is None else torch.tensor(given, dtype=torch.bool)

    return GroundTruth(
        boxes=boxes[valid],
        labels=torch.tensor(labels, dtype=torch.int64)[valid],
        iscrowd=flags(iscrowd)[valid],
        area=torch.tensor(area, dtype=torch.float32)[valid],
        ignore=flags(ignore)[valid],
    ), count - int(valid.sum())
