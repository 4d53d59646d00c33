"""Layouts: the objects that the detector is to see in a batch, drawn before there are images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from detkd.boxes import area_xyxy, clip_xyxy, cxcywh_to_xyxy, iou_xyxy
from detkd.classes import label_lookup
from detkd.data.counts import Counts, counts_from
from detkd.errors import InputError
from detkd.structures import Target


class Layout(Protocol):
    """Draws targets. seed: the layout's own, so that targets stay as they are while the seed of the images changes."""

    seed: int

    def __call__(
        self, count: int, classes: Sequence[str], image_size: tuple[int, int], generator: torch.Generator
    ) -> list[Target]:
        """Targets for ``count`` images of (height, width) pixels, from a CPU generator; label i is ``classes[i]``."""
        ...


def check_names(names: Sequence[str] | None) -> None:
    """Raise InputError unless ``names``, the key layout.classes, is None or a list of names."""
    if names is None:
        return
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"layout.classes: expected a list of class names, or null for all, got {names!r}")


def labels_of(names: Sequence[str] | None, classes: Sequence[str]) -> list[int]:
    """The labels of some names among ``classes``, ascending, each once; None is all of them.

    The VOC and COCO names of the same class (sofa and couch, ...) are one. Raises InputError naming those that are not there.
    """
    if not classes:
        raise InputError("layout: expected a teacher with at least one class, got none")
    if names is None:
        return list(range(len(classes)))
    label_of = label_lookup(classes)
    found = [label_of(name) for name in names]
    if unknown := [name for name, label in zip(names, found) if label is None]:
        more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        raise InputError(f"layout.classes: expected names of the teacher's, {list(classes[:20])}{more}, got {unknown}")
    return sorted({label for label in found if label is not None})


class UniformBoxes:
    """Boxes of uniform class, centre, width and height.

    Args:
        seed: of the layout.
        boxes: boxes an image: [fewest, most], all between equally likely; the name of a distribution (uniform, random, coco, voc)
            or {count: weight}, see :func:`detkd.data.counts.counts_from`. One box is DIODE's setting.
        size: [smallest, largest] width and height as a fraction of the image's; (.1, .75) is the paper's Table 1.
        inside: True draws centres so that the whole box is in the image (the released code, with size (.2, .8));
            False draws them anywhere, and clips the box (the paper).
        ratio: largest ratio of the longer side to the shorter one; a box beyond it is drawn again. None: any, as in the paper.
        max_iou: a further box that overlaps an earlier one by more is drawn again. An image gets 50 draws for each box that it is
            to have; where they do not find as many, it has fewer.
        classes: names of the classes to draw, among those of the teacher; None: all.

    Raises InputError on ranges that are empty or leave (0, 1], on unknown distributions, on an empty list of classes, and, once it
    is called, on unknown class names.
    """

    def __init__(
        self,
        seed: int = 0,
        boxes: str | Mapping[int, float] | Sequence[int] = (1, 1),
        size: tuple[float, float] = (0.1, 0.75),
        inside: bool = False,
        max_iou: float = 0.3,
        ratio: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        counts = counts_from(boxes, key="layout.boxes")
        check_names(classes)
        if len(size) != 2 or not 0 < size[0] <= size[1] <= 1:
            raise InputError(f"layout.size: expected [smallest, largest] with 0 < smallest <= largest <= 1, got {list(size)}")
        if ratio is not None and not ratio >= 1:
            raise InputError(f"layout.ratio: expected at least 1, or null, got {ratio}")
        if not 0 <= max_iou <= 1:
            raise InputError(f"layout.max_iou: expected 0 <= max_iou <= 1, got {max_iou}")
        self.seed, self.size, self.inside, self.max_iou = seed, (size[0], size[1]), inside, max_iou
        self.ratio, self.classes = ratio, classes
        # a range is drawn by randint, as it was before there were distributions: sets made since keep their boxes
        self.counts: Counts | tuple[int, int] = counts
        if not isinstance(boxes, (str, Mapping)):
            self.counts = (boxes[0], boxes[1])

    def __call__(
        self, count: int, classes: Sequence[str], image_size: tuple[int, int], generator: torch.Generator
    ) -> list[Target]:
        labels = torch.tensor(labels_of(self.classes, classes))
        return [self._one_image(labels, image_size, generator) for _ in range(count)]

    def _one_image(self, labels: Tensor, image_size: tuple[int, int], generator: torch.Generator) -> Target:
        wanted = self._count(generator)
        boxes = torch.zeros(0, 4)
        for _ in range(50 * wanted):
            if len(boxes) == wanted:
                break
            box = self._one_box(image_size, generator)
            if len(boxes) == 0 or iou_xyxy(box, boxes).max() <= self.max_iou:
                boxes = torch.cat([boxes, box])
        return {"boxes": boxes, "labels": labels[torch.randint(len(labels), (len(boxes),), generator=generator)]}

    def _count(self, generator: torch.Generator) -> int:
        if isinstance(self.counts, Counts):
            return int(self.counts.draw(1, generator))
        fewest, most = self.counts
        return int(torch.randint(fewest, most + 1, (), generator=generator))

    def _one_box(self, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """(1, 4) xyxy in pixels, of at least one square pixel."""
        height, width = image_size
        small, large = self.size
        for _ in range(1000):
            extent = small + (large - small) * torch.rand(2, generator=generator)
            sides = extent * torch.tensor([width, height])
            if self.ratio is not None and sides.max() > self.ratio * sides.min():
                continue
            centre = torch.rand(2, generator=generator)
            if self.inside:
                centre = extent / 2 + centre * (1 - extent)
            relative = cxcywh_to_xyxy(torch.cat([centre, extent])[None])  # (1, 4)
            box = clip_xyxy(relative * torch.tensor([width, height, width, height]), image_size)
            if area_xyxy(box) >= 1:
                return box
        raise InputError(
            f"layout: expected sizes {list(self.size)} and ratio {self.ratio} to allow boxes in an image of {width}x{height} px, "
            "found none in 1000 draws"
        )
