"""The types of corruptions, and their last step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]


def to_uint8(values: Floats) -> Pixels:
    """Values around [0, 255] as 8 bit: rounded, clipped. The array is overwritten."""
    np.clip(values, 0, 255, out=values)
    values += 0.5
    return values.astype(np.uint8)
