"""Chance that is the same everywhere: numbers and smooth noise from a key, apart from every global generator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
T = TypeVar("T")

_POOL = 256


class Dice:
    """Draw numbers from a stream that ``key`` alone decides.

    Everything is derived from the raw 64-bit words of PCG64, whose stream numpy keeps over its versions; the distributions of
    ``numpy.random.Generator`` carry no such promise.

    Args:
        key: integers >= 0.
    """

    def __init__(self, *key: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(key))
        self._pool: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._pool:
            self._pool = ((self._words.random_raw(_POOL) >> np.uint64(11)) * 2.0**-53).tolist()
        return low + (high - low) * self._pool.pop()

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.uniform() < probability

    def sign(self) -> float:
        """-1.0 or 1.0."""
        return 1.0 if self.chance(0.5) else -1.0

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``, all equally likely."""
        return options[self.integer(0, len(options) - 1)]

    def grid(self, rows: int, columns: int) -> Array:
        """(rows, columns) float32, uniform in [-1, 1)."""
        words = self._words.random_raw((rows * columns + 1) // 2).view(np.uint32)[: rows * columns]
        return (words.astype(np.float32) * np.float32(2.0**-31) - 1).reshape(rows, columns)

    def grain(self, *shape: int) -> Array:
        """``shape`` float32 of mean 0 and deviation 1, nearly normal: sums of four random bytes, within +-3.5."""
        count = int(np.prod(shape))
        octets = self._words.random_raw((count + 1) // 2).view(np.uint8)[: 4 * count].reshape(count, 4)
        total = octets.sum(axis=1, dtype=np.uint16).astype(np.float32)  # (count,)
        return ((total - 510) * np.float32(1 / 147.8)).reshape(shape)


def spline(positions: Array, cells: int) -> Array:
    """Weights (n, cells + 3) that read a cubic B-spline of ``cells`` spans at ``positions`` (n,) in [0, cells]."""
    knots = np.arange(cells + 3, dtype=np.float32) - 1
    t = np.abs(positions[:, None] - knots)  # (n, cells + 3)
    inner = 2 / 3 - t * t * (1 - t / 2)
    outer = np.maximum(2 - t, 0) ** 3 / 6
    weights: Array = np.where(t < 1, inner, outer).astype(np.float32)
    return weights


@lru_cache(maxsize=256)
def _even_spline(length: int, cells: int) -> Array:
    return spline((np.arange(length, dtype=np.float32) + 0.5) * (cells / length), cells)


def noise(dice: Dice, height: int, width: int, rows: int, columns: int) -> Array:
    """(height, width) smooth noise, about [-1, 1], with ``rows`` x ``columns`` bumps over the area."""
    left, right = _even_spline(height, rows), _even_spline(width, columns)
    field: Array = left @ (1.6 * dice.grid(rows + 3, columns + 3)) @ right.T  # (height, width)
    return field


def warped_noise(dice: Dice, positions: Array, width: int, rows: int, columns: int) -> Array:
    """Noise (n, width) whose line i is read at ``positions[i]`` in [0, rows]: for ground that runs to a horizon."""
    field: Array = spline(positions, rows) @ (1.6 * dice.grid(rows + 3, columns + 3)) @ _even_spline(width, columns).T
    return field
