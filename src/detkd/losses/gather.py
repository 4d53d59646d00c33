"""Rows of all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from detkd.losses.reduce import rank, world_size


@torch.no_grad()
def gather_rows(*values: Tensor) -> tuple[list[Tensor], int]:
    """The rows of all processes in the order of their ranks, and how many of them come before one's own.

    Args:
        values: (n, ...) each, of the same n; n may differ between processes, all else may not.

    Returns:
        ([(N, ...) each], first): without gradient, the same on every process; row ``first + i`` is one's own row i. Without a process
        group the processes are one, and values come back as they are, detached.

    A collective operation: every process must ask at the same place, also with no row. Several processes wait for the device once, to
    learn the counts.
    """
    processes = world_size()
    if processes == 1:
        return [value.detach() for value in values], 0
    own = len(values[0])
    counts = [torch.zeros(1, dtype=torch.int64, device=values[0].device) for _ in range(processes)]
    dist.all_gather(counts, torch.full((1,), own, device=values[0].device))
    lengths = torch.cat(counts).tolist()
    longest, gathered = max(lengths), []
    for value in values:
        padded = value.new_zeros(longest, *value.shape[1:])  # all_gather takes one shape
        padded[:own] = value.detach()
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        gathered.append(torch.cat([part[:length] for part, length in zip(parts, lengths)]))
    return gathered, sum(lengths[: rank()])
