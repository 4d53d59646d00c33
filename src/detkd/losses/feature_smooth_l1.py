"""Feature smooth L1: differences of neck maps, squared where they are small."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.neck import NeckTerm


def feature_smooth_l1_loss(student: Tensor, teacher: Tensor, delta: float = 1.0) -> Tensor:
    """Mean over images, channels and cells of d^2 / (2 delta) where |d| < delta, else |d| - delta / 2, of the difference d of two maps.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient. delta: in units of the maps, > 0.

    Returns:
        scalar >= 0; float64 for float64, else float32.

    Source: a baseline of de Rijk et al., NeurIPS 2022; smooth L1 of Girshick, Fast R-CNN, ICCV 2015.
    """
    return F.smooth_l1_loss(full(student), full(teacher.detach()), beta=delta)


class FeatureSmoothL1(NeckTerm):
    """The student's neck maps are the teacher's; see :func:`feature_smooth_l1_loss`, summed over levels.

    Args:
        delta: as there. levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution. Raises InputError unless delta > 0.
    """

    name = "feature_smooth_l1"

    def __init__(self, delta: float = 1.0, levels: Sequence[str] | None = None) -> None:
        super().__init__(levels)
        if not delta > 0:
            raise InputError(f"loss.feature_smooth_l1.delta: expected a positive number, got {delta}")
        self.delta = float(delta)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return feature_smooth_l1_loss(student, teacher, self.delta)
