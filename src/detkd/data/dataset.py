"""Images with what is known of them, at a network's size, as a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detkd.data.annotations import Annotations, GroundTruth, Record
from detkd.data.images import read_image
from detkd.data.letterbox import Placement, place
from detkd.errors import InputError
from detkd.structures import Resize, Target


class Sample(TypedDict):
    """One item of :class:`DetectionDataset`.

    image: (3, H, W) uint8 RGB at the network's size. target: boxes in pixels of ``image``, crowds and ignored ones left out; None where unlabelled.
    original_size: (height, width) of the file. placement: of the original in ``image``.
    """

    image: Tensor
    target: Target | None
    image_id: int
    original_size: tuple[int, int]
    placement: Placement


class DetectionDataset(Dataset[Sample]):
    """Serve images of any format's records at a network's size.

    Args:
        root: the folder that messages name.
        read: the images, and the boxes in them, all of them or none.
        image_size: (height, width). resize: see :func:`detkd.data.letterbox.place`.
        length: cut or repeat the set to this many samples, see :func:`spread`. None leaves it as it is.
        cache: keep the resized uint8 images in memory; each worker process keeps its own. Do not write into a cached image.
        difficult: boxes that scoring ignores are targets in training nevertheless.

    Attributes: classes; category_ids, the format's id of each label (empty without boxes); supercategories, by label, where the format has
    them; labelled, whether there are targets; records, one for each image, before ``length``.

    Raises InputError for no images; and when an image is read, for one that cannot be or whose size is not that of its record.
    """

    def __init__(
        self,
        root: Path,
        read: Annotations,
        *,
        image_size: tuple[int, int],
        resize: Resize,
        length: int | None = None,
        cache: bool = False,
        difficult: bool = False,
    ) -> None:
        if not read.records:
            raise InputError(f"{root}: expected images, found none")
        self.root = root
        self.classes, self.category_ids, self.records = read.classes, read.category_ids, read.records
        self.supercategories = read.supercategories
        self.labelled = self.records[0].truth is not None
        self.image_size = image_size
        self.resize: Resize = resize
        self.difficult = difficult
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
            if not self.difficult:
                keep &= ~record.truth["ignore"]
            target = Target(boxes=boxes[keep], labels=record.truth["labels"][keep])
        return Sample(image=image, target=target, image_id=record.image_id, original_size=original_size, placement=placement)

    def ground_truth(self, index: int) -> GroundTruth:
        """What is in image ``index``, crowds and ignored boxes included, in original pixels. Raises InputError where unlabelled."""
        truth = self.records[self._order[index]].truth
        if truth is None:
            raise InputError(f"{self.root}: expected annotations, found images alone")
        return truth

    def image_id(self, index: int) -> int:
        """The json's id of image ``index``."""
        return self.record(index).image_id

    def record(self, index: int) -> Record:
        """What is known of image ``index``."""
        return self.records[self._order[index]]

    def original(self, index: int) -> Image.Image:
        """Image ``index`` in its own size, RGB and upright. Raises InputError as reading a sample does."""
        return _decode(self.records[self._order[index]])

    def _read(self, number: int) -> tuple[Tensor, Placement, tuple[int, int]]:
        if self._cache is not None and number in self._cache:
            return self._cache[number]
        image = _decode(self.records[number])
        read = (*place(image, self.image_size, self.resize), (image.height, image.width))
        if self._cache is not None:
            self._cache[number] = read
        return read


def _decode(record: Record) -> Image.Image:
    image = read_image(record.path, record.size)
    if record.size is not None and (image.height, image.width) != record.size:
        raise InputError(
            f"{record.path}: expected {record.size[1]} x {record.size[0]} pixels as its annotations say, "
            f"found {image.width} x {image.height}"
        )
    return image


def spread(n: int, length: int | None) -> list[int]:
    """Indices that cut or repeat ``n`` samples to ``length``: evenly spaced ones when cut, whole rounds when repeated.

    Evenly spaced, because the files of many sets are sorted by class. Raises InputError for a length below 1.
    """
    if length is None:
        return list(range(n))
    if length < 1:
        raise InputError(f"length: expected at least 1, got {length}")
    return [i * n // length for i in range(length)] if length < n else [i % n for i in range(length)]
