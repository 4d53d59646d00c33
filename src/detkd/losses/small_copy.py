"""Small copy: the targets must also be found on a smaller copy of the image. A prior that needs no stored statistics.

A teacher's own loss alone accepts patterns that only one scale and one network read as the object. Evidence that survives a
reduction is coarser, and a second detector reads it too. Source: ours, after the average over transformations of Athalye et al.
("Synthesizing Robust Adversarial Examples", ICML 2018, equation 1) and the scaled copies of Lin et al. ("Nesterov Accelerated
Gradient and Scale Invariance for Adversarial Attacks", ICLR 2020); theirs keep the size and scale the values, ours scales the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.structures import Target, join_targets, with_boxes

Canvas = Literal["auto", "small", "full"]
MULTIPLE = 32  # px: the stride that most networks want their sides to be a multiple of
GREY = 0.5


def shrunk_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) times ``scale``, rounded, at least 1."""
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def small_canvas(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """The smallest (height, width) in multiples of 32 px that holds an image of ``size`` times ``scale``."""
    height, width = shrunk_size(size, scale)
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


def shrink(images: Tensor, targets: Sequence[Target], scale: float, canvas: tuple[int, int]) -> tuple[Tensor, list[Target]]:
    """Reduce images and put each in the middle of a grey ``canvas`` = (H', W'); boxes follow.

    images: (B, 3, H, W), reduced bilinearly with antialiasing (each pixel a triangle-weighted mean over twice 1/scale pixels).
    targets: boxes xyxy in pixels of ``images``; the result's are in pixels of the canvas, a box without area stays so.
    Returns (B, 3, H', W') in the dtype of ``images`` and the targets. Raises ValueError where the canvas is too small.
    """
    height, width = images.shape[-2:]
    rows, columns = shrunk_size((height, width), scale)
    if canvas[0] < rows or canvas[1] < columns:
        raise ValueError(f"expected a canvas of at least {(rows, columns)}, got {canvas}")
    top, left = (canvas[0] - rows) // 2, (canvas[1] - columns) // 2
    if (rows, columns) != (height, width):
        images = F.interpolate(images, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
    images = F.pad(images, (left, canvas[1] - columns - left, top, canvas[0] - rows - top), value=GREY)
    _, boxes, _ = join_targets(targets)
    # by columns: a tensor made of numbers would wait for the device
    x, y = boxes[:, 0::2] * (columns / width) + left, boxes[:, 1::2] * (rows / height) + top  # (n, 2) each
    return images, with_boxes(targets, torch.stack([x, y], dim=2).flatten(1))  # (n, 2, 2) -> (n, 4)


def small_copy_loss(
    detector: Detector, images: Tensor, targets: Sequence[Target], scale: float, canvas: tuple[int, int]
) -> dict[str, Tensor]:
    """The detector's own loss, by part, on :func:`shrink` of the images. Scalars, float32, with the detector's own gains."""
    small, moved = shrink(images.float(), targets, scale, canvas)
    return detector.loss(detector(small), moved)


class SmallCopy(nn.Module):
    """The frozen teacher's loss on a smaller copy of the images, as the network sees them (augmented: the targets moved along).

    Args:
        scale: side of the copy over that of the image, in (0, 1).
        canvas: what the copy is put on. "small": the smallest size in multiples of 32 px; "full": the size of the image, for
            detectors that take nothing smaller; "auto": small, or full where the detector refuses it with an InputError.

    For inversion: raises InputError in setup where there is a student, and in the first step for targets that are None.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, scale: float = 0.6, canvas: Canvas = "auto") -> None:
        super().__init__()
        if not 0 < scale < 1:
            raise InputError(f"small_copy.scale: expected a number between 0 and 1, got {scale!r}")
        if canvas not in ("auto", "small", "full"):
            raise InputError(f"small_copy.canvas: expected 'auto', 'small' or 'full', got {canvas!r}")
        self.scale, self.canvas = float(scale), canvas
        self._canvases: dict[tuple[int, int], tuple[int, int]] = {}

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        if student is not None:
            raise InputError(
                "loss term small_copy: a term of invert, it has no meaning with a student; take it out of loss=[...]"
            )
        self._canvases.clear()

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The parts of the teacher's loss on the copy, scalars by the detector's own names."""
        if step.targets is None:
            raise InputError("loss term small_copy: expected targets, found none; take it out of loss=[...]")
        assert step.teacher is not None
        size = (step.images.shape[-2], step.images.shape[-1])
        return small_copy_loss(
            step.teacher, step.images, step.targets, self.scale, self._canvas_for(step.teacher, size, step.images)
        )

    def _canvas_for(self, detector: Detector, size: tuple[int, int], images: Tensor) -> tuple[int, int]:
        """The canvas for images of ``size``, looked up once a size."""
        if size not in self._canvases:
            small = small_canvas(size, self.scale)
            full = self.canvas == "full" or (self.canvas == "auto" and not _takes(detector, images, small))
            self._canvases[size] = size if full else small
        return self._canvases[size]


@torch.no_grad()
def _takes(detector: Detector, images: Tensor, size: tuple[int, int]) -> bool:
    """Whether the detector takes images of ``size`` = (height, width)."""
    try:
        detector(images.new_full((1, 3, *size), GREY, dtype=torch.float32))
    except InputError:
        return False
    return True
