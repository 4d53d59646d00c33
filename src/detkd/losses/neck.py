"""NeckTerm: what all terms share that compare neck maps one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.losses.connectors import Connectors, over_levels
from detkd.losses.step import Step


class NeckTerm(nn.Module, ABC):
    """A comparison of each neck map of the student with the teacher's, summed over levels.

    Channels that differ go through a 1x1 convolution. A subclass has a ``name``, which is its part's and its key under ``loss``, and
    :meth:`compare`.

    Args:
        levels: see :func:`~detkd.losses.connectors.match_levels`.
    """

    name: str
    pools_batch = False
    needs_teacher = True

    def __init__(self, levels: Sequence[str] | None = None) -> None:
        super().__init__()
        self.connectors = Connectors(levels=levels)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar for two maps (B, C, H, W) of one shape, in float32 or float64 and outside autocast."""

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Pair the levels and build the connectors. Raises InputError where levels do not match."""
        self.connectors.setup(student, teacher, self.name)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, by the term's name: float32 scalar."""
        return {self.name: over_levels(self.connectors(step), self.compare)}
