"""Losses of rescaled planes, chunk by chunk, whose gradient is taken at once: one map is stored and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from detkd.errors import InputError

Per = Literal["level", "sample", "channel"]
# Student and teacher planes in [0, 1], (n, H, W) each, and whether a gradient is wanted; to the sum of a loss over all elements, and its
# gradient to the student (which may be overwritten) or None. It must treat planes apart.
Loss = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
# Elements a chunk: on a CPU its intermediate results stay in the cache; on other devices fewer and larger kernels count.
CPU_CHUNK = 1 << 17
DEVICE_CHUNK = 1 << 24


def check_per(term: str, per: str) -> None:
    """Raises InputError, naming the term's key, unless ``per`` is known."""
    if per not in get_args(Per):
        raise InputError(f"loss.{term}.per: expected one of {', '.join(get_args(Per))}, got {per!r}")


def extremes(maps: Tensor, per: Per) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of (B, C, H, W) maps, (B*C, 1, 1) each: of the whole ("level"), of each image, or of each channel of each image."""
    planes = maps.shape[0] * maps.shape[1]
    groups = {"level": 1, "sample": maps.shape[0], "channel": planes}[per]
    lowest, highest = torch.aminmax(maps.reshape(groups, -1), dim=1)  # (groups,)
    return tuple(v[:, None].expand(-1, planes // groups).reshape(-1, 1, 1) for v in (lowest, highest))  # type: ignore[return-value]


def rescaled_mean(loss: Loss, student: Tensor, teacher: Tensor, per: Per) -> Tensor:
    """The mean over elements of a loss of maps that are rescaled to [0, 1]: (x - min) / (max - min).

    Args:
        student, teacher: (B, C, H, W), of one shape. per: what shares a minimum and a maximum, see :func:`extremes`. A part whose values
            differ by less than 1e-6 becomes zeros, instead of noise drawn large.

    Returns:
        scalar, with a gradient to the student alone, through minimum and maximum too. It is computed in the forward pass and kept in one map, so
        the result is differentiable once.

    Raises ValueError where the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected maps of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    wanted = torch.is_grad_enabled() and student.requires_grad
    with torch.no_grad():
        bounds = extremes(teacher, per)
    planes, others = (m.reshape(-1, *m.shape[-2:]) for m in (student, teacher.detach()))  # (B, C, H, W) -> (B*C, H, W)
    total: Tensor = _Rescaled.apply(loss, wanted, planes, *extremes(student, per), others, *bounds)
    return total / student.numel()


def chunk_planes(planes: Tensor) -> int:
    """How many of (n, H, W) planes a chunk has."""
    budget = CPU_CHUNK if planes.device.type == "cpu" else DEVICE_CHUNK
    return max(1, min(len(planes), budget // max(1, planes[0].numel())))


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Loss, wanted: bool, *inputs: Tensor) -> Tensor:
        student, lowest, highest, teacher, t_lowest, t_highest = inputs
        factor, t_factor = _factor(lowest, highest), _factor(t_lowest, t_highest)
        gradient = torch.empty_like(student) if wanted else student.new_empty(0)
        to_lowest, to_highest = torch.zeros_like(lowest), torch.zeros_like(highest)
        total = student.new_zeros(())
        step = chunk_planes(student)
        mine, theirs = (torch.empty_like(student[:step]) for _ in range(2))
        for i in range(0, len(student), step):
            j = min(i + step, len(student))
            x, y = mine[: j - i], theirs[: j - i]
            torch.sub(student[i:j], lowest[i:j], out=x).mul_(factor[i:j])
            torch.sub(teacher[i:j], t_lowest[i:j], out=y).mul_(t_factor[i:j])
            value, to_x = loss(x, y, wanted)
            total += value
            if to_x is not None:
                # x = (s - lowest) / (highest - lowest)
                torch.mul(to_x, factor[i:j], out=gradient[i:j])
                whole = gradient[i:j].sum((1, 2), keepdim=True)
                to_highest[i:j] = -to_x.mul_(x).sum((1, 2), keepdim=True) * factor[i:j]
                to_lowest[i:j] = -whole - to_highest[i:j]
        flat = highest - lowest <= _FLAT
        ctx.save_for_backward(gradient, to_lowest.masked_fill_(flat, 0), to_highest.masked_fill_(flat, 0))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        return None, None, *(factor * gradient for gradient in ctx.saved_tensors), None, None, None


_FLAT = 1e-6


def _factor(lowest: Tensor, highest: Tensor) -> Tensor:
    extent = highest - lowest
    return torch.where(extent > _FLAT, 1 / extent.clamp(min=_FLAT), torch.zeros_like(extent))
