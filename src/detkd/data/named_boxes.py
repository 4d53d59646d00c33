"""Boxes with class names, as VOC and BDD100k write them, as annotations with labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from detkd.classes import label_lookup
from detkd.data import checks
from detkd.data.annotations import Annotations, GroundTruth, Record, checked_truth
from detkd.data.checks import OnProblem


@dataclass(frozen=True)
class NamedBox:
    """One object as a file says it.

    where: the place in the file, for messages. name: of its class. xyxy: 0-based pixels, right and bottom exclusive. ignore: it counts
    neither when it is found nor when it is missed. iscrowd: a group of objects, or what is scored like one.
    """

    where: str
    name: str
    xyxy: tuple[float, float, float, float]
    ignore: bool = False
    iscrowd: bool = False


@dataclass(frozen=True)
class NamedImage:
    """One image and the objects in it. size: (height, width) in pixels."""

    path: Path
    size: tuple[int, int]
    boxes: Sequence[NamedBox]


def to_annotations(
    source: str,
    images: Sequence[NamedImage],
    names: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
    proxy: bool = False,
) -> Annotations:
    """Map class names to labels, and check and clip the boxes.

    Args:
        source: the folder or file that messages name.
        names: of the format's classes in their order; category ids are places in it, from 1. Image ids are places in ``images``, from 1.
        classes: names in label order, found by name in any spelling that :func:`~detkd.classes.canonical` knows; None takes ``names``.
        on_unknown, invalid_boxes, proxy: as for :func:`~detkd.data.annotations.read_annotations`.

    Areas are those of the clipped boxes. Raises InputError naming the place of the first box that is wrong.
    """
    if classes is None:
        classes = names
    label = label_lookup(classes)
    used = {box.name for image in images for box in image.boxes}
    unknown = {name for name in used if label(name) is None}
    if not checks.check_known(source, classes, unknown, len(unknown) < len(used), on_unknown, "class names", proxy):
        return Annotations(tuple(names), {}, [Record(number, image.path, image.size) for number, image in enumerate(images, 1)])
    records: list[Record] = []
    dropped = 0
    for number, image in enumerate(images, start=1):
        known = [(box, found) for box in image.boxes if (found := label(box.name)) is not None]
        truth, invalid = _truth(
            [box for box, _ in known], [found for _, found in known], image.size, "drop" if proxy else invalid_boxes
        )
        records.append(Record(number, image.path, image.size, truth))
        dropped += invalid
    if dropped:
        warnings.warn(f"{source}: left out {dropped} boxes of no extent in their image", stacklevel=3)
    category_ids: dict[int, int] = {}
    for number, name in enumerate(names, start=1):
        if (found := label(name)) is not None:
            category_ids.setdefault(found, number)
    return Annotations(tuple(classes), category_ids, records)


def _truth(
    boxes: Sequence[NamedBox], labels: Sequence[int], size: tuple[int, int], invalid_boxes: OnProblem
) -> tuple[GroundTruth, int]:
    """The boxes of one image, and how many were dropped."""
    return checked_truth(
        torch.tensor([box.xyxy for box in boxes], dtype=torch.float64).reshape(-1, 4),
        labels,
        size,
        invalid_boxes,
        lambda i: (boxes[i].where, f"{list(boxes[i].xyxy)} (0-based left, top, right, bottom)"),
        iscrowd=[box.iscrowd for box in boxes],
        ignore=[box.ignore for box in boxes],
    )
