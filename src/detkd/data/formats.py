"""Open a data set of any format that detkd reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from detkd.data import bdd100k, voc
from detkd.data.checks import OnProblem
from detkd.data.coco import CocoDataset, official_json
from detkd.data.dataset import DetectionDataset
from detkd.errors import InputError
from detkd.structures import Resize

Format = Literal["folder", "coco", "voc", "bdd100k"]
Role = Literal["train", "score"]
_COCO_SPLITS = {"train": "train2017", "score": "val2017"}


def open_dataset(
    root: str | Path,
    format: Format = "folder",
    *,
    role: Role = "train",
    annotations: str | Path | None = None,
    split: str | Sequence[str] | None = None,
    difficult: bool = False,
    classes: Sequence[str] | None = None,
    image_size: tuple[int, int],
    resize: Resize,
    length: int | None = None,
    cache: bool = False,
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
    proxy: bool = False,
) -> DetectionDataset:
    """Open a data set.

    Args:
        root: the folder. format: "folder" (a store, any COCO json, or just images), "coco" (its own layout), "voc" or "bdd100k".
        role: what ``split`` is by default: the one for training, or the one with boxes to score on.
        annotations: "folder" and "bdd100k" alone: the json, relative to ``root``.
        split: "coco", like train2017; "voc", see :func:`~detkd.data.voc.read_voc`; "bdd100k", like train.
        difficult: "voc" alone: boxes marked difficult are targets too. Scores ignore them either way.

    The other arguments are those of :class:`~detkd.data.coco.CocoDataset`. InputError as the readers, and for arguments of another format.
    """
    if format not in get_args(Format):
        raise InputError(f"format: expected one of {', '.join(get_args(Format))}, found {format!r}")
    _only(annotations is not None, "annotations", format, ("folder", "bdd100k"))
    _only(split is not None, "split", format, ("coco", "voc", "bdd100k"))
    _only(difficult, "difficult", format, ("voc",))
    _check_split(split, format)
    root = Path(root)
    if format in ("folder", "coco"):
        if format == "coco":
            annotations = official_json(root, split if isinstance(split, str) else _COCO_SPLITS[role])
        return CocoDataset(
            root,
            annotations,
            classes=classes,
            image_size=image_size,
            resize=resize,
            length=length,
            cache=cache,
            on_unknown=on_unknown,
            invalid_boxes=invalid_boxes,
            proxy=proxy,
        )

    if format == "voc":
        read = voc.read_voc(root, split, classes, role=role, on_unknown=on_unknown, invalid_boxes=invalid_boxes, proxy=proxy)
    else:
        read = bdd100k.read_bdd100k(
            root,
            split if isinstance(split, str) else None,
            classes,
            annotations=annotations,
            role=role,
            on_unknown=on_unknown,
            invalid_boxes=invalid_boxes,
            proxy=proxy,
        )
    return DetectionDataset(root, read, image_size=image_size, resize=resize, length=length, cache=cache, difficult=difficult)


def standard_classes(format: Format) -> tuple[str, ...] | None:
    """The class names that a format always has; None where each set has its own."""
    return {"voc": voc.CLASSES, "bdd100k": bdd100k.CLASSES}.get(format)


def _check_split(split: object, format: Format) -> None:
    """A name; for VOC several too. From the command line 2017 comes as a number."""
    if split is None or isinstance(split, str):
        return
    found = list(split) if isinstance(split, Sequence) else split
    if format == "voc" and isinstance(found, list) and all(isinstance(name, str) for name in found):
        return
    expected = "names, like trainval or [VOC2007/trainval,VOC2012/trainval]," if format == "voc" else "one name"
    raise InputError(f"split: expected {expected} with format={format}, found {found!r}")


def _only(given: bool, key: str, format: Format, formats: tuple[str, ...]) -> None:
    if given and format not in formats:
        raise InputError(f"{key}: expected it with format={' or '.join(formats)} alone, found it with format={format}")
