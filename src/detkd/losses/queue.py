"""A memory of features past: a ring that the oldest leave first."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """The last ``size`` rows of ``width`` numbers that were put in; empty at first.

    Every process puts the same rows in, so DistributedDataParallel need not send the buffer (``same_everywhere``).
    Part of the state dict: the rows as a buffer, and the place of the next row and the number of rows as extra state. These two are Python
    numbers in use, so that nothing waits for the device. Raises ValueError unless size and width are positive.
    """

    rows: Tensor
    same_everywhere = True

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1 or width < 1:
            raise ValueError(f"expected a queue of positive size and width, got {size} and {width}")
        self.size = size
        self.place = self.filled = 0
        self.register_buffer("rows", torch.zeros(size, width))

    def read(self) -> Tensor:
        """(filled, width), without gradient, in no order; a view, so what is put in later shows in it."""
        return self.rows[: self.filled].detach()

    @torch.no_grad()
    def put(self, rows: Tensor) -> None:
        """Add rows (n, width), in place of the oldest where there is no room left; of more than ``size`` the last ones."""
        rows = rows.detach()[-self.size :].to(self.rows)
        head = min(len(rows), self.size - self.place)
        self.rows[self.place : self.place + head] = rows[:head]
        self.rows[: len(rows) - head] = rows[head:]
        self.place = (self.place + len(rows)) % self.size
        self.filled = min(self.filled + len(rows), self.size)

    def get_extra_state(self) -> Tensor:
        """(2,) int64: the place of the next row, the number of rows."""
        return torch.tensor([self.place, self.filled])

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of :meth:`get_extra_state`."""
        self.place, self.filled = (int(v) for v in state)
