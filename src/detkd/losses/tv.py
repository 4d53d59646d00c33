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
    """The gradient is made on the way forward: on a CPU a third of the time of four differences that autograd goes back through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total, gradient = x.new_zeros(()), torch.zeros_like(x)
        for here, there in DIRECTIONS:
            difference = x[there] - x[here]
            if difference.numel():
                sign, count = difference.sign(), difference.numel()
                total += torch.dot(difference.flatten(), sign.flatten()) / count
                gradient[there].add_(sign, alpha=1 / count)
                gradient[here].sub_(sign, alpha=1 / count)
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
