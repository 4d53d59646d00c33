"""Stages of an inversion, and the seeds of its parts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

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

    @property
    def weight_decay(self) -> float:
        """How fast the optimiser draws parameters to 0 beside its steps; 0 where it has no such setting."""
        (group,) = self.optimizer([nn.Parameter(torch.zeros(1))]).param_groups
        return float(group.get("weight_decay", 0.0))

    def shortened(self, fraction: float) -> Stage:
        """The same stage in a fraction of its iterations, at least one."""
        return replace(self, iterations=max(1, round(self.iterations * fraction)))


class Work(NamedTuple):
    """One optimiser step: iteration ``iteration`` of stage ``stage`` of attempt ``attempt`` at batch ``batch``, all from 0."""

    batch: int
    attempt: int
    stage: int
    iteration: int


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed from any keys, the same on every machine; different keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
