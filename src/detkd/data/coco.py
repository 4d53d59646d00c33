"""Images with COCO annotations, a store, or a plain folder of images, as a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detkd.data.annotations import GroundTruth, OnProblem, Record, read_annotations
from detkd.data.letterbox import Placement, place
from detkd.data.store import holds_store, open_store
from detkd.errors import InputError
from detkd.structures import Resize, Target

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000
# what PIL may decode; its other formats are rare, and one of them (EPS) starts a program
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # tag of EXIF
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Sample(TypedDict):
    """One item of :class:`CocoDataset`.

    image: (3, H, W) uint8 RGB at the network's size. target: boxes in pixels of ``image``, crowds left out; None where unlabelled.
    original_size: (height, width) of the file. placement: of the original in ``image``.
    """

    image: Tensor
    target: Target | None
    image_id: int
    original_size: tuple[int, int]
    placement: Placement


class CocoDataset(Dataset[Sample]):
    """Read a folder of images, with or without COCO annotations, at a network's size.

    Args:
        root: a folder with a COCO json, a detkd store, or just images (in it, in images/, or one folder below either).
        annotations: the json, relative to ``root``. By default instances.json, else the only json in ``root`` or in
            annotations/, else none. Images lie below ``root``, images/, or a folder of the json's name (without "instances_") in either.
        classes: of the detector, in label order; categories map to them by name. None takes the json's own.
        image_size: (height, width). resize: see :func:`detkd.data.letterbox.place`.
        length: cut or repeat the set to this many samples, see :func:`spread`. None leaves it as it is.
        cache: keep the resized uint8 images in memory; each worker process keeps its own. Do not write into a cached image.
        proxy: only the images matter: a json whose categories are not among ``classes``, or whose boxes are invalid, then gives
            images without targets, with a warning.
        on_unknown, invalid_boxes: see :func:`detkd.data.annotations.read_annotations`.

    Attributes: classes; category_ids, the json's id of each label (empty without json); labelled, whether there are targets;
    records, one for each image, before ``length``.

    Raises InputError naming file and entry for annotations that do not hold together, more than one json to choose from, or no images;
    and when an image is read, for one that cannot be or whose size is not the one in the json.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path | None = None,
        *,
        classes: Sequence[str] | None = None,
        image_size: tuple[int, int],
        resize: Resize,
        length: int | None = None,
        cache: bool = False,
        on_unknown: OnProblem = "error",
        invalid_boxes: OnProblem = "error",
        proxy: bool = False,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{self.root}: expected a folder of images, found {'a file' if self.root.exists() else 'nothing'}")
        if annotations is None and holds_store(self.root):
            open_store(self.root)
        json_path = _find_json(self.root, annotations)
        self.records: list[Record]
        self.category_ids: dict[int, int] = {}
        if json_path is None:
            self.classes = tuple(classes or ())
            self.records = _plain_records(self.root)
        else:
            folders = _image_folders(self.root, json_path)
            try:
                read = read_annotations(json_path, folders, classes, on_unknown=on_unknown, invalid_boxes=invalid_boxes)
            except InputError as error:
                if not proxy:
                    raise
                read = read_annotations(json_path, folders, None, invalid_boxes="drop")
                read = replace(read, records=[replace(record, truth=None) for record in read.records], category_ids={})
                warnings.warn(f"images are used without their boxes: {error}", stacklevel=2)
            self.classes, self.category_ids, self.records = read.classes, read.category_ids, read.records
        if not self.records:
            raise InputError(f"{json_path or self.root}: expected images, found none")
        self.labelled = self.records[0].truth is not None
        self.image_size = image_size
        self.resize: Resize = resize
        self._order = spread(len(self.records), length)
        self._cache: dict[int, tuple[Tensor, Placement, tuple[int, int]]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[self._order[index]]
        image, placement, original_size = self._read(self._order[index])
        target: Target | None = None
        if record.truth is not None:
            boxes = placement.apply_xyxy(record.truth["boxes"])
            # a sliver can lose its extent to rounding when it is scaled
            keep = ~record.truth["iscrowd"] & (boxes[:, 2:] > boxes[:, :2]).all(-1)
            target = Target(boxes=boxes[keep], labels=record.truth["labels"][keep])
        return Sample(image=image, target=target, image_id=record.image_id, original_size=original_size, placement=placement)

    def ground_truth(self, index: int) -> GroundTruth:
        """What is in image ``index``, crowds included, in original pixels. Raises InputError where unlabelled."""
        truth = self.records[self._order[index]].truth
        if truth is None:
            raise InputError(f"{self.root}: expected annotations, found images alone")
        return truth

    def image_id(self, index: int) -> int:
        """The json's id of image ``index``."""
        return self.records[self._order[index]].image_id

    def _read(self, number: int) -> tuple[Tensor, Placement, tuple[int, int]]:
        if self._cache is not None and number in self._cache:
            return self._cache[number]
        record = self.records[number]
        image = read_image(record.path, record.size)
        size = (image.height, image.width)
        if record.size is not None and size != record.size:
            raise InputError(
                f"{record.path}: expected {record.size[1]} x {record.size[0]} pixels as its annotations say, "
                f"found {image.width} x {image.height}"
            )
        read = (*place(image, self.image_size, self.resize), size)
        if self._cache is not None:
            self._cache[number] = read
        return read


def spread(n: int, length: int | None) -> list[int]:
    """Indices that cut or repeat ``n`` samples to ``length``: evenly spaced ones when cut, whole rounds when repeated.

    Evenly spaced, because the files of many sets are sorted by class. Raises InputError for a length below 1.
    """
    if length is None:
        return list(range(n))
    if length < 1:
        raise InputError(f"length: expected at least 1, got {length}")
    return [i * n // length for i in range(length)] if length < n else [i % n for i in range(length)]


def read_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    Args:
        size: (height, width) that the annotations refer to, if known.

    The orientation in EXIF is applied, except where it swaps the sides and ``size`` is that of the stored pixels: then the boxes
    were drawn on those. Grey and palette images become RGB; transparent ones are laid over white; 16-bit values are scaled to
    8 bit. The first frame of an animation counts.

    Raises InputError naming the file when it is missing, corrupt, truncated, of more than ``MAX_PIXELS`` pixels, of another format
    than those in ``SUFFIXES``, or holds real or 32-bit numbers.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: expected at most {MAX_PIXELS} pixels, found {image.width} x {image.height}")
            orientation = _orientation(image)
            stored = (image.height, image.width)
            rgb = _to_rgb(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected an image, found no such file") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise InputError(
            f"{path}: expected an image that can be read, but it is damaged or of another kind: {error}"
        ) from error
    if orientation >= 5 and size == stored and size != stored[::-1]:
        return rgb
    return rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb


def _orientation(image: Image.Image) -> int:
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata over sound pixels
        return 1
    return value if value in _TRANSPOSE else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("real numbers where 8 or 16 bits a channel were expected")
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"))  # (H, W)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit numbers where 8 or 16 bits a channel were expected")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        if image.mode == "LAB":
            raise ValueError("the colour space LAB where RGB or grey was expected")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _find_json(root: Path, annotations: str | Path | None) -> Path | None:
    found = sorted(root.glob("*.json")) or sorted((root / "annotations").glob("*.json"))
    if annotations is not None:
        path = root / annotations
        if not path.is_file():
            raise InputError(f"{path}: expected a COCO json, found none; {root} has {_names(found, root)}")
        return path
    if (root / "instances.json") in found:
        return root / "instances.json"
    if len(found) > 1:
        raise InputError(
            f"{root}: expected instances.json or a single json, found {_names(found, root)}; name one as annotations"
        )
    return found[0] if found else None


def _names(paths: Sequence[Path], root: Path) -> str:
    return ", ".join(p.relative_to(root).as_posix() for p in paths) or "no json"


def _image_folders(root: Path, json_path: Path) -> list[Path]:
    name = json_path.stem.removeprefix("instances_")
    folders = [root / "images" / name, root / name, root / "images", root]
    return [folder for folder in folders if folder.is_dir()]


def _plain_records(root: Path) -> list[Record]:
    base = root / "images" if (root / "images").is_dir() else root
    below = sorted(p for pattern in ("*", "*/*") for p in base.glob(pattern))
    paths = [p for p in below if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")]
    return [Record(number, path) for number, path in enumerate(paths, start=1)]
