"""Stages of an inversion, and the list of its steps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from detkd.errors import InputError


@dataclass(frozen=True)
class Stage:
    """One resolution of an inversion.

    Args:
        resolution: (height, width) in pixels.
        iterations: optimiser steps.
        optimizer: makes an optimiser for parameters; its learning rates are the starting ones.
        weights: of loss terms, in place of the composite's.
        final_lr: learning rate at the end of the stage, as a fraction of the starting one (cosine in between).
    """

    resolution: tuple[int, int]
    iterations: int
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    weights: Mapping[str, float] = field(default_factory=dict)
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        if min(self.resolution) < 1:
            raise InputError(f"stages.resolution: expected positive pixels, got {self.resolution}")
        if self.iterations < 1:
            raise InputError(f"stages.iterations: expected at least 1, got {self.iterations}")

    def lr_factor(self, iteration: int) -> float:
        """Cosine from 1 at iteration 0 to ``final_lr`` at the end."""
        return self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * iteration / self.iterations)) / 2


IDLE = -1  # the batch of a step in which there is nothing to do


class Work(NamedTuple):
    """One optimiser step: iteration ``iteration`` of stage ``stage`` of batch ``batch``, or none for :data:`IDLE`."""

    batch: int
    stage: int
    iteration: int


class WorkList(Dataset[Work]):
    """Every step of the given batches, in order: one Lightning training step each, so that its loop, bars and loggers fit."""

    def __init__(self, batches: Sequence[int], stages: Sequence[Stage]) -> None:
        self.batches = list(batches)
        self._steps = [(s, i) for s, stage in enumerate(stages) for i in range(stage.iterations)]

    def __len__(self) -> int:
        return len(self.batches) * len(self._steps)

    def __getitem__(self, index: int) -> Work:
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch, step = divmod(index, len(self._steps))
        return Work(self.batches[batch], *self._steps[step])


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed from any keys, the same on every machine; different keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
