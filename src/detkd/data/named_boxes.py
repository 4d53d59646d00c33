"""Boxes with class names, as VOC and BDD100k write them, as annotations with labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from detkd.boxes import area_xyxy, clip_xyxy
from detkd.classes import canonical
from detkd.data import checks
from detkd.data.annotations import Annotations, GroundTruth, Record
from detkd.data.checks import OnProblem
from detkd.errors import InputError


@dataclass(frozen=True)
class NamedBox:
    """One object as a file says it.

    where: the place in the file, for messages. name: of its class. xyxy: 0-based pixels, right and bottom exclusive. ignore: it counts
    neither when it is found nor when it is missed.
    """

    where: str
    name: str
    xyxy: tuple[float, float, float, float]
    ignore: bool = False


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
) -> Annotations:
    """Map class names to labels, and check and clip the boxes.

    Args:
        source: the folder or file that messages name.
        names: of the format's classes in their order; category ids are places in it, from 1. Image ids are places in ``images``, from 1.
        classes: names in label order, found by name in any spelling that :func:`~detkd.classes.canonical` knows; None takes ``names``.
        on_unknown, invalid_boxes: as for :func:`~detkd.data.annotations.read_annotations`.

    Areas are those of the clipped boxes. Raises InputError naming the place of the first box that is wrong.
    """
    if classes is None:
        classes = names
    label_of = {canonical(name): label for label, name in reversed(list(enumerate(classes)))}
    label_of |= {name: label for label, name in enumerate(classes)}

    def label(name: str) -> int | None:
        return label_of.get(name, label_of.get(canonical(name)))

    used = {box.name for image in images for box in image.boxes}
    unknown = {name for name in used if label(name) is None}
    checks.check_known(source, classes, unknown, len(unknown) < len(used), on_unknown, kind="class names")
    records: list[Record] = []
    dropped = 0
    for number, image in enumerate(images, start=1):
        known = [(box, found) for box in image.boxes if (found := label(box.name)) is not None]
        truth, invalid = _truth([box for box, _ in known], [found for _, found in known], image.size, invalid_boxes)
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
    given = torch.tensor([box.xyxy for box in boxes], dtype=torch.float64).reshape(-1, 4)
    clipped = clip_xyxy(given, size).float()
    # the extent is looked at before and after clipping: a box turned inside out can overhang its image on both sides
    valid = given.isfinite().all(-1) & (given[:, 2:] > given[:, :2]).all(-1) & (clipped[:, 2:] > clipped[:, :2]).all(-1)
    if invalid_boxes == "error" and not bool(valid.all()):
        box = boxes[int(valid.int().argmin())]
        raise InputError(
            f"{box.where}: expected a box of positive extent inside an image of {size[1]} x {size[0]} pixels, "
            f"got {list(box.xyxy)} (0-based left, top, right, bottom); invalid_boxes=drop leaves such boxes out"
        )
    kept = clipped[valid]
    return GroundTruth(
        boxes=kept,
        labels=torch.tensor(labels, dtype=torch.int64)[valid],
        iscrowd=torch.zeros(len(kept), dtype=torch.bool),
        area=area_xyxy(kept),
        ignore=torch.tensor([box.ignore for box in boxes], dtype=torch.bool)[valid],
    ), len(boxes) - len(kept)
