"""The l2 prior on pixels: ||x||_2^2. Source: DIODE (Chawla et al., WACV 2021), equation 3; its scripts leave it at 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detkd.detectors.protocol import Detector
from detkd.losses.step import Step


def pixel_l2(images: Tensor) -> Tensor:
    """Mean square over (B, 3, H, W) pixels, scalar float32. A mean, where the paper sums, so that resolution does not matter."""
    return _MeanSquare.apply(images.float())


class _MeanSquare(torch.autograd.Function):
    """Two passes over the pixels, one each way, where autograd takes six of ``square().mean()``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # Row by row, since one sum over all adds so many numbers in a row that float32 loses thousandths.
        return torch.linalg.vector_norm(x, dim=-1).square().sum() / x.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 * upstream / x.numel())


class PixelL2(nn.Module):
    """Mean square of the un-augmented pixels."""

    pools_batch = False
    needs_teacher = False

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Needs nothing."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"pixel_l2": pixel_l2(step.images if step.clean_images is None else step.clean_images)}
