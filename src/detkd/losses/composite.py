"""Composite: the weighted sum of named loss terms, with every part on record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.losses.weight_schedule import WeightSchedule


class Term(Protocol):
    """A loss term: an ``nn.Module`` that reads a :class:`Step`.

    pools_batch: True where the value belongs to the batch and cannot be split by image (batch statistics).
    needs_teacher: False lets distillation leave the teacher's forward pass out.

    A term may also say ``adds_loss = False``: all it does, it does in ``setup``; it is not called. ``needs_targets = True``: without labels
    it is an error at the start. Numbers to be logged that are no loss go to :meth:`Step.record`.
    """

    pools_batch: bool
    needs_teacher: bool

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Unweighted scalars by part name, float32, finite also for images without boxes."""
        ...

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Called once before the first step: check what the term needs (InputError) and build its parameters."""
        ...


class Composite(nn.Module):
    """Sum named terms with weights.

    Args:
        terms: by name. weights: one a term; a term of weight 0 is dropped, so that it is neither set up nor called.
        schedules: of weights that change over a run, by term, see :meth:`weights_at`.

    Raises ValueError when the names of terms and weights differ, a schedule has no term, or nothing is left.
    """

    def __init__(
        self,
        terms: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        schedules: Mapping[str, WeightSchedule] | None = None,
    ) -> None:
        super().__init__()
        if set(terms) != set(weights):
            raise ValueError(f"expected one weight for each of {sorted(terms)}, got weights for {sorted(weights)}")
        if unknown := sorted(set(schedules or {}) - set(terms)):
            raise ValueError(f"expected schedules for some of {sorted(terms)}, got some for {unknown}")
        self.weights = {name: float(w) for name, w in weights.items() if w != 0}
        self.schedules = {name: s for name, s in (schedules or {}).items() if name in self.weights}
        self.terms = nn.ModuleDict({name: terms[name] for name in self.weights})
        if not self.terms:
            raise ValueError(f"expected a loss term of non-zero weight, got {dict(weights)}")
        if not any(_adds_loss(term) for term in self.terms.values()):
            raise InputError(
                f"loss: expected a term that adds a loss, found {', '.join(self.terms)} alone; add one, like loss=[{','.join(self.terms)},detection]"
            )

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Set up every term. Leaves the global random state as it was, so that terms do not change the student's course."""
        with torch.random.fork_rng(devices=[]):
            for term in self.terms.values():
                cast(Term, term).setup(student, teacher)

    def weight(self, name: str, overrides: Mapping[str, float] | None = None) -> float:
        """The weight of a term, or what ``overrides`` (of a stage) says instead."""
        return self.weights[name] if overrides is None else float(overrides.get(name, self.weights[name]))

    def weights_at(self, step: int, total_steps: int) -> dict[str, float]:
        """The weights in force in optimiser step ``step`` (from 0) of ``total_steps``, of the terms that have a schedule."""
        return {name: self.weights[name] * s.factor(step, total_steps) for name, s in self.schedules.items()}

    def forward(self, step: Step, weights: Mapping[str, float] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the unweighted parts by name: "term", or "term/part" where a term has several.

        What terms record of the step (:meth:`Step.record`) is among the parts as "term/name", and in no sum.
        weights: replaces the weights of the terms it names.
        """
        total = step.images.new_zeros((), dtype=torch.float32)
        parts: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            weight = self.weight(name, weights)
            if weight == 0 or not _adds_loss(term):
                continue
            step.metrics.clear()  # another reader of the step may have left some
            values = cast(Term, term)(step)
            value = torch.stack([v.float() for v in values.values()]).sum()
            parts[name] = value
            if len(values) > 1:
                parts |= {f"{name}/{part}": v for part, v in values.items()}
            parts |= {f"{name}/{metric}": v for metric, v in step.metrics.items()}
            total = total + weight * value
        return total, parts

    @torch.no_grad()
    def per_image(self, step: Step, weights: Mapping[str, float] | None = None) -> Tensor:
        """(B,) weighted sums, image by image; terms that pool the batch add the same value to each."""
        totals = step.images.new_zeros(len(step.images), dtype=torch.float32)
        singles = [step.image(i) for i in range(len(step.images))]
        for name, module in self.terms.items():
            weight = self.weight(name, weights)
            if weight == 0 or not _adds_loss(module):
                continue
            term = cast(Term, module)
            steps = [step] if term.pools_batch else singles
            totals += weight * torch.stack([torch.stack(list(term(s).values())).sum().float() for s in steps])
        return totals


def _adds_loss(term: nn.Module) -> bool:
    return bool(getattr(term, "adds_loss", True))
