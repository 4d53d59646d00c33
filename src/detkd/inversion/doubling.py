"""Twice the size by bilinear interpolation, several times as fast on a CPU as ``F.interpolate``, and deterministic on a GPU, way back included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def doubled(images: Tensor) -> Tensor:
    """Images (B, C, H, W) at (2H, 2W), as ``F.interpolate(..., mode="bilinear", align_corners=False)`` gives them."""
    return _Doubled.apply(images)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return _double(_double(images, 3), 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _double_transposed(_double_transposed(gradient, 2), 3)


def _double(x: Tensor, dim: int) -> Tensor:
    """A new element lies a quarter of the way from its own old one to the next; at the ends there is no next."""
    count = x.shape[dim]
    out = x.new_empty([2 * side if d == dim else side for d, side in enumerate(x.shape)])
    _part(out, dim, 0, 1).copy_(_part(x, dim, 0, 1))
    _part(out, dim, 2 * count - 1, None).copy_(_part(x, dim, count - 1, None))
    before, after = _part(x, dim, 0, count - 1), _part(x, dim, 1, None)
    torch.lerp(before, after, 0.25, out=_part(out, dim, 1, -1, 2))
    torch.lerp(before, after, 0.75, out=_part(out, dim, 2, None, 2))
    return out


def _double_transposed(gradient: Tensor, dim: int) -> Tensor:
    """The transpose of :func:`_double`: every new element gives .75 and .25 of its gradient to the two it came from."""
    count = gradient.shape[dim] // 2
    out = (_part(gradient, dim, 0, None, 2) + _part(gradient, dim, 1, None, 2)).mul_(0.75)
    _part(out, dim, 0, count - 1).add_(_part(gradient, dim, 2, None, 2), alpha=0.25)
    _part(out, dim, 1, None).add_(_part(gradient, dim, 1, -1, 2), alpha=0.25)
    _part(out, dim, 0, 1).add_(_part(gradient, dim, 0, 1), alpha=0.25)
    _part(out, dim, count - 1, None).add_(_part(gradient, dim, 2 * count - 1, None), alpha=0.25)
    return out


def _part(x: Tensor, dim: int, start: int, stop: int | None, step: int = 1) -> Tensor:
    """``x[start:stop:step]`` along a dimension."""
    return x[(slice(None),) * dim + (slice(start, stop, step),)]
