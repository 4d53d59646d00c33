"""Feature smooth L1: differences of neck maps, squared where they are small."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.connectors import Connectors, full, over_levels
from detkd.losses.step import Step


def feature_smooth_l1_loss(student: Tensor, teacher: Tensor, delta: float = 1.0) -> Tensor:
    """Mean over images, channels and cells of d^2 / (2 delta) where |d| < delta, else |d| - delta / 2, of the difference d of two maps.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient. delta: in units of the maps, > 0.

    Returns:
        scalar >= 0; float64 for float64, else float32.

    Source: a baseline of de Rijk et al., NeurIPS 2022; smooth L1 of Girshick, Fast R-CNN, ICCV 2015.
    """
    return F.smooth_l1_loss(full(student), full(teacher.detach()), beta=delta)


class FeatureSmoothL1(nn.Module):
    """The student's neck maps are the teacher's; see :func:`feature_smooth_l1_loss`, summed over levels.

    Args:
        delta: as there. levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution. Raises InputError unless delta > 0.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, delta: float = 1.0, levels: Sequence[str] | None = None) -> None:
        super().__init__()
        if not delta > 0:
            raise InputError(f"loss.feature_smooth_l1.delta: expected a positive number, got {delta}")
        self.delta = float(delta)
        self.connectors = Connectors(levels=levels)

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Pair the levels and build the connectors. Raises InputError where levels do not match."""
        self.connectors.setup(student, teacher, "feature_smooth_l1")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "feature_smooth_l1": float32 scalar."""
        pairs = self.connectors(step)
        return {"feature_smooth_l1": over_levels(pairs, lambda s, t: feature_smooth_l1_loss(s, t, self.delta))}
