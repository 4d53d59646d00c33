"""Warm start: later batches begin from pieces of the first ones instead of from noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detkd.errors import InputError
from detkd.structures import Target


class WarmStart:
    """Make a first guess of a batch from a bank of finished images.

    Every image begins as a bank image (background), with a crop of a bank object of the right class, where there is one, laid into
    each of its boxes; contrast is reduced and noise added, so that there is something left to decide.

    Args:
        batches: the first so many batches are the bank. They begin from noise, and all are finished before any other begins.
        contrast: what is left of the distance to grey. noise: standard deviation of the noise.
        shorten: fraction of each stage's iterations that warm batches take.

    Ours: DIODE starts every image from noise.
    """

    def __init__(self, batches: int = 1, contrast: float = 0.7, noise: float = 0.1, shorten: float = 1.0) -> None:
        if batches < 1:
            raise InputError(f"warm_start.batches: expected at least 1, got {batches}")
        if not 0 < shorten <= 1:
            raise InputError(f"warm_start.shorten: expected a fraction above 0, at most 1, got {shorten}")
        self.batches, self.contrast, self.noise, self.shorten = batches, contrast, noise, shorten

    def __call__(
        self,
        images: Tensor,
        bank: Sequence[Target],
        targets: Sequence[Target],
        size: tuple[int, int],
        generator: torch.Generator,
    ) -> Tensor:
        """Images (len(targets), 3, *size) in [0, 1].

        images: (N, 3, h, w) in [0, 1], the bank, with its targets; targets: in pixels of ``size``. All on the CPU, as the generator.
        """
        owners = [(i, k) for i, target in enumerate(bank) for k in range(len(target["labels"]))]
        of_class: dict[int, list[tuple[int, int]]] = {}
        for i, k in owners:
            of_class.setdefault(int(bank[i]["labels"][k]), []).append((i, k))
        made = []
        for target in targets:
            image = _resize(images[_draw(len(images), generator)], size)
            if _draw(2, generator):
                image = image.flip(-1)
            for box, label in zip(target["boxes"], target["labels"].tolist()):
                if label not in of_class:
                    continue
                i, k = of_class[label][_draw(len(of_class[label]), generator)]
                left, top, right, bottom = _whole_pixels(box, size)
                x0, y0, x1, y1 = _whole_pixels(bank[i]["boxes"][k], (images.shape[-2], images.shape[-1]))
                image[:, top:bottom, left:right] = _resize(images[i, :, y0:y1, x0:x1], (bottom - top, right - left))
            made.append(image)
        start = 0.5 + self.contrast * (torch.stack(made) - 0.5)
        return (start + self.noise * torch.randn(start.shape, generator=generator)).clamp(0, 1)


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, h, w) to (3, *size), a copy."""
    if image.shape[-2:] == size:
        return image.clone()
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def _whole_pixels(box_xyxy: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that a box covers, at least one."""
    height, width = size
    x0, y0, x1, y1 = box_xyxy.tolist()
    left, top = min(int(x0), width - 1), min(int(y0), height - 1)
    return left, top, max(left + 1, min(width, round(x1))), max(top + 1, min(height, round(y1)))
