"""Normalisers over all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """How many processes train together: 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def mean_count(count: Tensor) -> Tensor:
    """What to divide a process's sums by: max(1, the counts of all processes) / processes, elementwise.

    Args:
        count: any shape, any type: how many elements this process sums over. Without a process group the processes are one.

    Returns:
        float32 (float64 for float64) of the same shape, without gradient.

    DistributedDataParallel averages gradients over processes, so sums divided by this give the gradient, and on average over processes the
    value, of the joined batch. Every process must ask at the same place, also with a count of zero: it is a collective operation.
    """
    total = count.detach().to(count.dtype if count.dtype == torch.float64 else torch.float32, copy=True)
    processes = world_size()
    if processes > 1:
        dist.all_reduce(total)
    return total.clamp(min=1) / processes
