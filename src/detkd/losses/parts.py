"""The parts of a term that has a weight for each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def weighted_parts(parts: Mapping[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
    """Scalars times their weights, from (weight, scalar) by name: float32; a part of weight 0 is left out."""
    return {name: (weight * part).float() for name, (weight, part) in parts.items() if weight}
