"""How the weight of a loss term changes over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from detkd.errors import InputError

Decay = Literal["none", "linear", "cosine"]


def weight_factor(
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    start: float = 0.0,
    decay: Decay = "none",
    decay_from: float = 0.0,
    end: float = 0.0,
) -> float:
    """What a term's weight is multiplied by in a step: a linear rise to 1, a hold, a fall.

    Args:
        step: optimiser step, from 0. total_steps: of the run, positive.
        warmup_steps, start: ``start + (1 - start) (step + 1) / (warmup_steps + 1)`` while step < warmup_steps, so that the first step counts
            also with ``start=0``.
        decay, decay_from, end: from the fraction ``decay_from`` of the run in [0, 1) the factor falls (or rises) along a line or half a
            cosine, and would reach ``end`` at ``total_steps``. Where the rise is not over by then, the two are multiplied.

    Returns:
        a factor >= 0; of a run's own steps none is 0, so that a term with a schedule is called in every step.
    """
    rise = start + (1 - start) * (step + 1) / (warmup_steps + 1) if step < warmup_steps else 1.0
    if decay == "none":
        return rise
    begin = decay_from * total_steps
    progress = min(1.0, max(0.0, (step - begin) / (total_steps - begin)))
    left = 1 - progress if decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return rise * (end + (1 - end) * left)


@dataclass(frozen=True)
class WeightSchedule:
    """The settings of :func:`weight_factor`, under the names of ``loss.<term>.schedule``.

    Raises InputError for numbers out of range and for a schedule that changes nothing.
    """

    warmup_steps: int = 0
    start: float = 0.0
    decay: Decay = "none"
    decay_from: float = 0.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not _is_number(self.warmup_steps) or self.warmup_steps != int(self.warmup_steps) or self.warmup_steps < 0:
            raise InputError(f"schedule.warmup_steps: expected a number of steps >= 0, found {self.warmup_steps!r}")
        for name in ("start", "end"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise InputError(f"schedule.{name}: expected a factor >= 0, found {value!r}")
        if self.decay not in get_args(Decay):
            raise InputError(f"schedule.decay: expected one of {', '.join(get_args(Decay))}, found {self.decay!r}")
        if not _is_number(self.decay_from) or not 0 <= self.decay_from < 1:
            raise InputError(f"schedule.decay_from: expected a fraction of the run in [0, 1), found {self.decay_from!r}")
        if self.decay == "none" and (self.decay_from or self.end):
            raise InputError("schedule.decay: expected linear or cosine where decay_from or end is given, found none")
        if self.decay == "none" and not self.warmup_steps:
            raise InputError("schedule: expected warmup_steps > 0 or a decay (linear, cosine), found neither")
        if self.start and not self.warmup_steps:
            raise InputError(
                f"schedule.start: expected warmup_steps > 0 where start is given, found start={self.start!r} alone"
            )

    def factor(self, step: int, total_steps: int) -> float:
        """The factor in a step of a run of ``total_steps``."""
        return weight_factor(step, total_steps, int(self.warmup_steps), self.start, self.decay, self.decay_from, self.end)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
