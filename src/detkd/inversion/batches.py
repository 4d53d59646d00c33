"""The batches of a set: which one is next, and where a finished one goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from detkd.structures import Target


@dataclass(frozen=True)
class Finished:
    """A finished batch, as it is stored.

    images: (B, 3, H, W) uint8, CPU. targets: one an image, CPU. records: the scores of each image. trace: the course of the
    first attempt: the numbers "iterations", and at each of them the mean "objects" of an image and the mean "loss" (None at 0).
    """

    index: int
    images: Tensor
    targets: list[Target]
    records: list[dict[str, Any]]
    trace: dict[str, list[float | None]]


class Batches(Protocol):
    """Hands out the batches of a set to one process, and takes them back."""

    def claim(self) -> int | None:
        """The next batch to make, None when all are finished. Waits while there is nothing to do and others are at work."""
        ...

    def deliver(self, finished: Finished) -> None:
        """Take a finished batch; it may be written later."""
        ...

    def read(self, index: int) -> tuple[Tensor, list[Target]]:
        """Images (B, 3, H, W) uint8 and targets of a finished batch."""
        ...


class MemoryBatches:
    """All batches in order, by one process, kept in ``finished`` by index."""

    def __init__(self, n_batches: int) -> None:
        self._next, self._n = 0, n_batches
        self.finished: dict[int, Finished] = {}

    def claim(self) -> int | None:
        if self._next >= self._n:
            return None
        self._next += 1
        return self._next - 1

    def deliver(self, finished: Finished) -> None:
        self.finished[finished.index] = finished

    def read(self, index: int) -> tuple[Tensor, list[Target]]:
        return self.finished[index].images, self.finished[index].targets
