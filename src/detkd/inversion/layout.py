"""Layouts: the objects that the detector is to see in a batch, drawn before there are images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from detkd.boxes import area_xyxy, clip_xyxy, cxcywh_to_xyxy, iou_xyxy
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


class UniformBoxes:
    """Boxes of uniform class, centre, width and height.

    Args:
        seed: of the layout.
        boxes: [fewest, most] boxes an image, uniform. One box is DIODE's setting.
        size: [smallest, largest] width and height as a fraction of the image's; (.1, .75) is the paper's Table 1.
        inside: True draws centres so that the whole box is in the image (the released code, with size (.2, .8));
            False draws them anywhere, and clips the box (the paper).
        ratio: largest ratio of the longer side to the shorter one; a box beyond it is drawn again. None: any, as in the paper.
        max_iou: a further box that overlaps an earlier one by more is drawn again, at most 50 times, then left out.

    Raises InputError on ranges that are empty or leave (0, 1].
    """

    def __init__(
        self,
        seed: int = 0,
        boxes: tuple[int, int] = (1, 1),
        size: tuple[float, float] = (0.1, 0.75),
        inside: bool = False,
        max_iou: float = 0.3,
        ratio: float | None = None,
    ) -> None:
        if not 1 <= boxes[0] <= boxes[1]:
            raise InputError(f"layout.boxes: expected [fewest, most] with 1 <= fewest <= most, got {list(boxes)}")
        if not 0 < size[0] <= size[1] <= 1:
            raise InputError(f"layout.size: expected [smallest, largest] with 0 < smallest <= largest <= 1, got {list(size)}")
        if ratio is not None and not ratio >= 1:
            raise InputError(f"layout.ratio: expected at least 1, or null, got {ratio}")
        self.ratio = ratio
        self.seed, self.boxes, self.size, self.inside, self.max_iou = seed, tuple(boxes), tuple(size), inside, max_iou

    def __call__(
        self, count: int, classes: Sequence[str], image_size: tuple[int, int], generator: torch.Generator
    ) -> list[Target]:
        return [self._one_image(len(classes), image_size, generator) for _ in range(count)]

    def _one_image(self, num_classes: int, image_size: tuple[int, int], generator: torch.Generator) -> Target:
        fewest, most = self.boxes
        wanted = int(torch.randint(fewest, most + 1, (), generator=generator))
        boxes = torch.zeros(0, 4)
        for _ in range(50 * wanted):
            if len(boxes) == wanted:
                break
            box = self._one_box(image_size, generator)
            if len(boxes) == 0 or iou_xyxy(box, boxes).max() <= self.max_iou:
                boxes = torch.cat([boxes, box])
        labels = torch.randint(num_classes, (len(boxes),), generator=generator)
        return {"boxes": boxes, "labels": labels}

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
