"""Losses of rescaled planes, chunk by chunk, whose gradient is taken at once: one map is stored and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from detkd.errors import InputError

Per = Literal["level", "sample", "channel"]
# Student and teacher planes in [0, 1], (H, n, W) each, and whether a gradient is wanted; to the sum of a loss over all elements, and its
# gradient to the student (which may be overwritten) or None. It must treat planes apart. Rows come first, so that a window over them is one
# product for all planes.
Loss = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
# Elements a chunk: on a CPU its intermediate results stay in the cache; on other devices fewer and larger kernels count.
CPU_CHUNK = 1 << 16
DEVICE_CHUNK = 1 << 24
_FLAT = 1e-6


def check_per(term: str, per: str) -> None:
    """Raises InputError, naming the term's key, unless ``per`` is known."""
    if per not in get_args(Per):
        raise InputError(f"loss.{term}.per: expected one of {', '.join(get_args(Per))}, got {per!r}")


def group_count(maps: Tensor, per: Per) -> int:
    """In how many equal parts (B, C, H, W) maps fall that share extremes: the whole ("level"), images, or channels of images."""
    return {"level": 1, "sample": maps.shape[0], "channel": maps.shape[0] * maps.shape[1]}[per]


def rescaled_mean(loss: Loss, student: Tensor, teacher: Tensor, per: Per) -> Tensor:
    """The mean over elements of a loss of maps that are rescaled to [0, 1]: (x - min) / (max - min).

    Args:
        student, teacher: (B, C, H, W), of one shape. per: what shares a minimum and a maximum, the whole map ("level"), an image of it ("sample"), or a
            channel of an image ("channel"). A part whose values differ by less than 1e-6 becomes zeros, instead of noise drawn large.

    Returns:
        scalar, with a gradient to the student alone, through minimum and maximum too (where several cells have it, through the first). It is
        computed in the forward pass and kept in one map, so the result is differentiable once.

    Raises ValueError where the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected maps of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    wanted = torch.is_grad_enabled() and student.requires_grad
    # contiguous: of a channels_last map of one image, reshape gives a view in another order
    planes, others = (m.reshape(-1, *m.shape[-2:]).contiguous() for m in (student, teacher.detach()))  # (B*C, H, W)
    total: Tensor = _Rescaled.apply(loss, wanted, group_count(student, per), planes, others)
    return total / student.numel()


def chunk_planes(planes: Tensor) -> int:
    """How many of (n, H, W) planes a chunk has, so that chunks are of nearly one size."""
    budget = CPU_CHUNK if planes.device.type == "cpu" else DEVICE_CHUNK
    most = max(1, budget // max(1, planes[0].numel()))
    return -(-len(planes) // -(-len(planes) // most))


class _Extremes:
    """Minimum and maximum of groups of planes, and the first plane of each group that has them.

    Args:
        planes: (n, H, W); groups: how many equal runs of them share extremes.
    """

    def __init__(self, planes: Tensor, groups: int) -> None:
        flat = planes.flatten(1)
        per_group = len(planes) // groups
        first = torch.arange(groups, device=planes.device) * per_group
        lowest, of_lowest = flat.amin(1).view(groups, per_group).min(1, keepdim=True)  # (groups, 1)
        highest, of_highest = flat.amax(1).view(groups, per_group).max(1, keepdim=True)
        self.plane_lowest, self.plane_highest = first + of_lowest[:, 0], first + of_highest[:, 0]
        extent = highest - lowest
        factor = torch.where(extent > _FLAT, 1 / extent.clamp(min=_FLAT), torch.zeros_like(extent))
        self.lowest = lowest.expand(-1, per_group).reshape(-1, 1, 1)
        self.factor = factor.expand(-1, per_group).reshape(-1, 1, 1)  # 1 / (highest - lowest)

    def spread(self, gradient: Tensor, planes: Tensor, to_lowest: Tensor, to_highest: Tensor) -> None:
        """Add to the gradient (n, H, W) what goes through the extremes, given by plane, (n,) each: to the first cell that has the extreme."""
        flat, values = gradient.view(-1), planes.flatten(1)
        groups, cells = len(self.plane_lowest), values.shape[1]
        lowest = self.plane_lowest * cells + values[self.plane_lowest].argmin(1)
        highest = self.plane_highest * cells + values[self.plane_highest].argmax(1)
        flat.scatter_add_(0, lowest, to_lowest.view(groups, -1).sum(1))
        flat.scatter_add_(0, highest, to_highest.view(groups, -1).sum(1))


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Loss, wanted: bool, groups: int, student: Tensor, teacher: Tensor) -> Tensor:
        mine, theirs = _Extremes(student, groups), _Extremes(teacher, groups)
        gradient = torch.empty_like(student) if wanted else student.new_empty(0)
        to_lowest, to_highest = student.new_zeros(len(student)), student.new_zeros(len(student))
        total = student.new_zeros(())
        step = chunk_planes(student)
        height, width = student.shape[1:]
        memory = student.new_empty(2, step * height * width)
        for i in range(0, len(student), step):
            j = min(i + step, len(student))
            x, y = memory[:, : (j - i) * height * width].view(2, height, j - i, width)
            factor = mine.factor[i:j].view(-1, 1)  # (n, 1)
            torch.sub(student[i:j].transpose(0, 1), mine.lowest[i:j].view(-1, 1), out=x).mul_(factor)
            torch.sub(teacher[i:j].transpose(0, 1), theirs.lowest[i:j].view(-1, 1), out=y).mul_(theirs.factor[i:j].view(-1, 1))
            value, to_x = loss(x, y, wanted)
            total += value
            if to_x is not None:
                # x = (s - lowest) / (highest - lowest)
                torch.mul(to_x, factor, out=gradient[i:j].transpose(0, 1))
                through_both = gradient[i:j].sum((1, 2))
                torch.sum(to_x.mul_(x), (0, 2), out=to_highest[i:j])
                to_highest[i:j].mul_(factor[:, 0]).neg_()
                to_lowest[i:j] = -through_both - to_highest[i:j]
        if wanted:
            mine.spread(gradient, student, to_lowest, to_highest)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return None, None, None, factor * gradient, None
