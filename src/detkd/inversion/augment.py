"""DIODE's augmentations of the images under optimisation, one class each; boxes follow.

Source: Chawla et al., WACV 2021, section 3.3 and Table 2, with the released magnitudes. A departure: every image has draws
of its own, where the authors draw one jitter and one flip for the whole batch. All draws are made on the device, nothing
waits for it. A box that leaves the image is kept without area, which is no object to any loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from detkd.boxes import area_xyxy, clip_xyxy
from detkd.errors import InputError
from detkd.structures import Target, join_targets, with_boxes


class Augmentation(Protocol):
    """Maps images (B, 3, H, W) and their targets; draws from ``generator``, which is on the device of the images."""

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]: ...


class Compose:
    """Augmentations one after the other, in the order given."""

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        self.augmentations = list(augmentations)

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]:
        order: tuple[Tensor, Tensor] | None = None  # rows and columns that are still to be taken
        for augmentation in self.augmentations:
            if isinstance(augmentation, Reordering):
                rows, columns, targets = augmentation.draw(images, targets, generator)
                order = (rows, columns) if order is None else (order[0].gather(1, rows), order[1].gather(1, columns))
                continue
            if order is not None:
                images, order = _Permute.apply(images, *order), None
            images, targets = augmentation(images, targets, generator)
        return images if order is None else _Permute.apply(images, *order), targets


class _Permute(torch.autograd.Function):
    """Take rows and columns of each image in a new order; the gradient goes back by the inverse order, without adding."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        return _take(images, rows, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        return _take(gradients[0], rows.argsort(1), columns.argsort(1)), None, None


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    index = rows[:, :, None] * width + columns[:, None, :]  # (B, H, W)
    flat = images.reshape(batch, channels, height * width)
    return flat.gather(2, index.view(batch, 1, -1).expand(-1, channels, -1)).view_as(images)


class Reordering(ABC):
    """An augmentation that takes rows and columns of each image in a new order.

    :class:`Compose` does several in a row as one, by their :meth:`draw`: it does not call them.
    """

    @abstractmethod
    def draw(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Sequence[Target]]:
        """Rows (B, H) and columns (B, W) of the images to take, int64, and the moved targets. Of the images shape and device alone matter."""

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]:
        rows, columns, targets = self.draw(images, targets, generator)
        return _Permute.apply(images, rows, columns), targets


class Jitter(Reordering):
    """Roll by up to ``fraction`` of the side on both axes (wraps around); boxes move, are clipped, and end under 1 px^2.

    20 px at 160 px and 40 px at 320 px are the released values: fraction 0.125.
    """

    def __init__(self, fraction: float = 0.125) -> None:
        self.fraction = fraction

    def draw(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Sequence[Target]]:
        batch, _, height, width = images.shape
        limit = torch.tensor([round(self.fraction * width), round(self.fraction * height)], device=images.device)
        draws = torch.rand(batch, 2, generator=generator, device=images.device)
        shift = (draws * (2 * limit + 1)).long() - limit  # (B, 2): x, y
        rows = (torch.arange(height, device=images.device) - shift[:, 1:]) % height  # (B, H)
        columns = (torch.arange(width, device=images.device) - shift[:, :1]) % width  # (B, W)
        index, boxes, _ = join_targets(targets)
        boxes = clip_xyxy(boxes + shift[index].repeat(1, 2).to(boxes.dtype), (height, width))
        return rows, columns, with_boxes(targets, boxes * (area_xyxy(boxes) >= 1)[:, None])


class Flip(Reordering):
    """Mirror left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def draw(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Sequence[Target]]:
        batch, _, height, width = images.shape
        flipped = torch.rand(batch, generator=generator, device=images.device) < self.p
        columns = torch.arange(width, device=images.device)
        columns = torch.where(flipped[:, None], width - 1 - columns, columns)  # (B, W)
        rows = torch.arange(height, device=images.device).expand(batch, -1)
        index, boxes, _ = join_targets(targets)
        mirrored = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        has_area = (area_xyxy(boxes) > 0)[:, None]
        return rows, columns, with_boxes(targets, torch.where(flipped[index][:, None] & has_area, mirrored, boxes))


class Zoom:
    """Scale each image by a factor of its own, log-uniform in ``scale``, with probability ``p``; boxes follow, are clipped, and end under 1 px^2.

    Enlarged, a window anywhere in the image is shown; reduced, the image lies anywhere in the frame and goes on as its mirror image.
    Bilinear, without smoothing.

    Ours: DIODE has no change of scale. Raises InputError unless 0 < smallest <= largest and 0 <= p <= 1.
    """

    def __init__(self, scale: tuple[float, float] = (0.7, 1.3), p: float = 1.0) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise InputError(f"zoom.scale: expected [smallest, largest] with 0 < smallest <= largest, found {list(scale)}")
        if not 0 <= p <= 1:
            raise InputError(f"zoom.p: expected a probability, found {p}")
        self.scale, self.p = (float(scale[0]), float(scale[1])), p

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]:
        batch, _, height, width = images.shape
        chosen, scale, left, top = torch.rand(4, batch, generator=generator, device=images.device)
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        factor = torch.where(chosen < self.p, torch.exp(low + scale * (high - low)), 1.0)  # (B,)
        start = torch.stack([left * width, top * height], 1) * (1 - 1 / factor)[:, None]  # (B, 2) of the window: x, y in pixels
        x, y = (
            (2 * start[:, axis, None] + (2 * torch.arange(side, device=images.device) + 1) / factor[:, None]) / side - 1
            for axis, side in enumerate((width, height))
        )  # (B, W) and (B, H): what output pixels show of the input, which spans -1 to 1
        grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
        images = F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=False)
        index, boxes, _ = join_targets(targets)
        boxes = (boxes - start.repeat(1, 2)[index].to(boxes.dtype)) * factor[index, None].to(boxes.dtype)
        boxes = clip_xyxy(boxes, (height, width))
        return images, with_boxes(targets, boxes * (area_xyxy(boxes) >= 1)[:, None])


class Brightness:
    """Add N(0, std) to each image."""

    def __init__(self, std: float = 0.2) -> None:
        self.std = std

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]:
        draws = torch.randn(len(images), 1, 1, 1, generator=generator, device=images.device)
        return images + self.std * draws, targets


class Contrast:
    """Multiply each image by 1 + N(0, std); not clamped."""

    def __init__(self, std: float = 0.1) -> None:
        self.std = std

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]:
        draws = torch.randn(len(images), 1, 1, 1, generator=generator, device=images.device)
        return images * (1 + self.std * draws), targets


class Noise:
    """Add N(0, std) to each pixel and channel. Ours: a detector's answer to fine patterns of its own making drowns in it."""

    def __init__(self, std: float = 0.05) -> None:
        self.std = std

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]:
        draws = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        return images + self.std * draws, targets


class Cutout:
    """With probability ``p`` set a rectangle of each image to 0: relative area in ``area``, height over width in ``ratio``.

    As torchvision's RandomErasing (area uniform, ratio log-uniform), but a side longer than the image is cut to it where
    RandomErasing draws again.
    """

    def __init__(
        self, p: float = 0.5, area: tuple[float, float] = (0.02, 0.2), ratio: tuple[float, float] = (0.3, 3.3)
    ) -> None:
        self.p, self.area, self.ratio = p, tuple(area), tuple(ratio)

    def __call__(
        self, images: Tensor, targets: Sequence[Target], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Target]]:
        batch, _, height, width = images.shape
        chosen, area, ratio, top, left = torch.rand(5, batch, generator=generator, device=images.device)
        pixels = (self.area[0] + area * (self.area[1] - self.area[0])) * height * width
        low, high = torch.tensor(self.ratio, dtype=torch.float64).log().tolist()
        side = torch.exp(low + ratio * (high - low))
        tall = (pixels * side).sqrt().round().clamp(1, height)
        wide = (pixels / side).sqrt().round().clamp(1, width)
        top, left = (top * (height - tall + 1)).floor(), (left * (width - wide + 1)).floor()
        tall = tall * (chosen < self.p)
        ys = torch.arange(height, device=images.device)[None]
        xs = torch.arange(width, device=images.device)[None]
        rows = (ys >= top[:, None]) & (ys < (top + tall)[:, None])  # (B, H)
        columns = (xs >= left[:, None]) & (xs < (left + wide)[:, None])  # (B, W)
        shown = ~(rows[:, :, None] & columns[:, None, :])[:, None]
        return images * shown.to(images.dtype), targets
