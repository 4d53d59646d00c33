"""Exponential moving average of a student's weights."""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError


class EMA(nn.Module):
    """A frozen copy of ``student`` that follows its weights: ``average += (1 - d_t) * (weights - average)``.

    Args:
        student: copied as it is; it is not held.
        decay: d, in [0, 1). warmup_steps: tau >= 0, in updates.

    At update t = 1, 2, ... the decay is ``d_t = d * (1 - exp(-t / tau))``, so that the random start is soon forgotten; tau 0 is no warm-up.
    Float parameters and buffers, BatchNorm's statistics among them, are averaged; the others are copied.
    Raises ValueError for a decay or a warm-up out of range.
    """

    def __init__(self, student: Detector, decay: float = 0.9998, warmup_steps: int = 2000) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay: expected a value in [0, 1), got {decay}")
        if warmup_steps < 0:
            raise InputError(f"ema_warmup: expected steps >= 0, got {warmup_steps}")
        self.decay = float(decay)
        self.warmup_steps = warmup_steps
        self.updates = 0
        self.average = cast(nn.Module, copy.deepcopy(student)).requires_grad_(False).eval()

    @property
    def detector(self) -> Detector:
        """The average, in eval mode."""
        return cast(Detector, self.average)

    def start(self, student: Detector) -> None:
        """Take the weights of ``student`` as they are, where it has changed since it was copied and before the first update."""
        self.average.load_state_dict(student.state_dict())

    def decay_at(self, update: int) -> float:
        """The decay of update ``update`` = 1, 2, ..."""
        return self.decay if self.warmup_steps == 0 else self.decay * -math.expm1(-update / self.warmup_steps)

    @torch.no_grad()
    def update(self, student: Detector) -> None:
        """Take one step towards the weights of ``student``. No host sync."""
        self.updates += 1
        mine, theirs = self.average.state_dict(), student.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        weight = 1 - self.decay_at(self.updates)
        torch._foreach_lerp_([mine[n] for n in floats], [theirs[n].to(mine[n]) for n in floats], weight)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])

    def train(self, mode: bool = True) -> EMA:
        """Stay in eval mode, whatever the module around it does."""
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        """The number of updates; a Python number while in use, so that the decay costs no host sync."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of :meth:`get_extra_state`."""
        self.updates = int(state)
