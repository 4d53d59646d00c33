"""R_TV: total variation of the image. Source: DIODE (Chawla et al., WACV 2021), equation 4, in its released form."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.step import Step

ALL, LATER, EARLIER = slice(None), slice(1, None), slice(None, -1)
CHUNK = 2**18  # values that a CPU's caches hold beside their differences
# Where pixels are and where their neighbours: right, below, below to the right, below to the left.
DIRECTIONS = (
    ((..., ALL, EARLIER), (..., ALL, LATER)),
    ((..., EARLIER, ALL), (..., LATER, ALL)),
    ((..., EARLIER, EARLIER), (..., LATER, LATER)),
    ((..., EARLIER, LATER), (..., LATER, EARLIER)),
)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference to neighbours, summed over 4 directions (right, down, both diagonals), scalar float32.

    images: (B, 3, H, W). A *mean* over pixels, so that weights hold at any resolution; equation 4 sums two directions.
    A direction in which the image is one pixel wide counts 0.
    """
    return _TotalVariation.apply(images.float())


class _TotalVariation(torch.autograd.Function):
    """The gradient is made on the way forward, on a CPU a few images at a time: a quarter of the time of four differences with autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total, gradient = x.new_zeros(()), torch.zeros_like(x)
        count = max(1, CHUNK * len(x) // max(1, x.numel())) if x.device.type == "cpu" else max(1, len(x))
        for images, slopes in zip(torch.split(x, count), torch.split(gradient, count), strict=True):
            for here, there in DIRECTIONS:
                difference = images[there] - images[here]
                if difference.numel():
                    share = 1 / (len(x) * (difference.numel() // len(images)))  # of one difference in the mean over all images
                    total += share * difference.abs().sum()
                    sign = difference.sign_()
                    slopes[there].add_(sign, alpha=share)
                    slopes[here].sub_(sign, alpha=share)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream


class TotalVariation(nn.Module):
    """Total variation of the images. of: "augmented" as the network sees them (the released code), or "clean"."""

    pools_batch = False
    needs_teacher = False

    def __init__(self, of: Literal["augmented", "clean"] = "augmented") -> None:
        super().__init__()
        if of not in ("augmented", "clean"):
            raise InputError(f"tv.of: expected 'augmented' or 'clean', got {of!r}")
        self.of = of

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Needs nothing."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        clean = self.of == "clean" and step.clean_images is not None
        return {"tv": total_variation(step.clean_images if clean and step.clean_images is not None else step.images)}
