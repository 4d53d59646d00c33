"""The parts of a term that has a weight for each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detkd.errors import InputError


def weighted_parts(parts: Mapping[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
    """Scalars times their weights, from (weight, scalar) by name: float32; a part of weight 0 is left out."""
    return {name: (weight * part).float() for name, (weight, part) in parts.items() if weight}


def check_weights(term: str, **weights: float) -> None:
    """Raises InputError unless the weights of a term's parts, by argument, are at least 0 and one of them is positive."""
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        names, found = (" and ".join(map(str, given)) for given in (weights, weights.values()))
        raise InputError(f"loss.{term}: expected {names} >= 0, one of them positive, got {found}")
