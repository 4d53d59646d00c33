"""Tilings of the images of a data set: which images come together, each tiling a function of (seed, index)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torchvision.transforms.functional import pil_to_tensor

from detkd.data.annotations import Record
from detkd.data.coco import CocoDataset
from detkd.data.counts import Counts
from detkd.data.images import read_image
from detkd.data.tile import MOST, tile
from detkd.errors import InputError
from detkd.structures import Target


class Tiling(NamedTuple):
    """One image made of several.

    image: (3, H, W) uint8 RGB. target: boxes xyxy in its pixels. sources: the ids of the images that it is made of.
    dropped: number of their boxes that became too small.
    """

    image: Tensor
    target: Target
    sources: tuple[int, ...]
    dropped: int


class Tilings:
    """Make tilings of a data set's images, in any order and any number.

    Args:
        source: labelled images, read from their files at their own size when they are needed; nothing is kept. Crowd regions are
            left out, and so are images without another box.
        counts: how many objects a tiling is to have, at most 25. Images are drawn, all alike, and added as long as each brings the
            number of objects nearer to the one wanted; the first always is. So a source of one object an image gives exactly
            ``counts``, and as many images in one.
        image_size: (height, width) of what is made, in pixels, at least 32 each.
        seed: tiling i is a function of (seed, i) and the source. min_side: see :func:`detkd.data.tile.tile`.

    An image comes again in a tiling only when all others are there.

    Attributes: source, counts, image_size, seed, min_side; records: of the images that are drawn from.

    Raises InputError for sources without a box, and for counts, sizes and sides out of range; and when a tiling is made, for an
    image that cannot be read or whose size is not that of its annotations.
    """

    def __init__(
        self, source: CocoDataset, counts: Counts, image_size: tuple[int, int], seed: int = 0, min_side: float = 2.0
    ) -> None:
        if counts.values[-1] > MOST:
            raise InputError(f"counts: expected counts of at most {MOST}, got {counts.values[-1]}")
        if len(image_size) != 2 or min(image_size) < 32:
            raise InputError(f"image_size: expected at least 32 pixels a side, got {list(image_size)}")
        if not 0 <= min_side <= min(image_size):
            raise InputError(f"min_side: expected pixels from 0 to the image's {min(image_size)}, got {min_side}")
        self.source, self.counts, self.image_size, self.seed, self.min_side = source, counts, image_size, seed, min_side
        self.records = [record for record in source.records if _objects(record)]
        self._objects = [_objects(record) for record in self.records]
        if not self.records:
            found = f"{len(source.records)} images without any" if source.labelled else "images without annotations"
            raise InputError(f"{source.root}: expected images with boxes, found {found}")

    def __getitem__(self, index: int) -> Tiling:
        """Tiling ``index``, any number from 0."""
        generator = Generator().manual_seed(_seed_of(self.seed, index))
        wanted = int(self.counts.draw(1, generator))
        records = [self.records[i] for i in _draw(wanted, self._objects, generator)]
        images, targets = zip(*map(_read, records))
        image, target = tile(images, targets, self.image_size, generator, self.min_side)
        dropped = sum(map(_objects, records)) - len(target["boxes"])
        return Tiling(image, target, tuple(record.image_id for record in records), dropped)

    @property
    def objects_before(self) -> float:
        """Objects an image of the source, those without any included."""
        return sum(map(_objects, self.source.records)) / len(self.source.records)

    def sha256(self) -> str:
        """Checksum of what the source's annotations say: class names, and the id, file name, size and boxes of each image drawn from."""
        digest = hashlib.sha256(json.dumps(self.source.classes).encode())
        for record in self.records:
            target = _target(record)
            entry = [record.image_id, record.path.name, record.size, target["boxes"].tolist(), target["labels"].tolist()]
            digest.update(json.dumps(entry).encode())
        return digest.hexdigest()


def _seed_of(seed: int, index: int) -> int:
    """Neighbouring numbers give seeds that have nothing to do with each other."""
    return int.from_bytes(hashlib.sha256(f"tile {seed} {index}".encode()).digest()[:8], "little") >> 1


def _draw(wanted: int, objects: Sequence[int], generator: Generator) -> list[int]:
    """Indices into ``objects``, drawn until another would not bring their sum nearer to ``wanted``; the first always is there."""
    drawn: list[int] = []
    left = wanted
    while left > 0:
        index = int(torch.randint(len(objects), (), generator=generator))
        if drawn.count(index) > len(drawn) // len(objects):
            continue  # others are not there yet
        if drawn and objects[index] >= 2 * left:
            break
        drawn.append(index)
        left -= objects[index]
    return drawn


def _target(record: Record) -> Target:
    """Boxes in pixels of the image, without crowd regions."""
    assert record.truth is not None
    keep = ~record.truth["iscrowd"]
    return Target(boxes=record.truth["boxes"][keep], labels=record.truth["labels"][keep])


def _objects(record: Record) -> int:
    return 0 if record.truth is None else int((~record.truth["iscrowd"]).sum())


def _read(record: Record) -> tuple[Tensor, Target]:
    """The image (3, h, w) uint8 and its target."""
    image = read_image(record.path, record.size)
    if (image.height, image.width) != record.size:
        assert record.size is not None
        raise InputError(
            f"{record.path}: expected {record.size[1]} x {record.size[0]} pixels as its annotations say, "
            f"found {image.width} x {image.height}"
        )
    return pil_to_tensor(image), _target(record)
