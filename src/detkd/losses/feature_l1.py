"""Feature L1: absolute differences of neck maps."""

from __future__ import annotations

from torch import Tensor

from detkd.losses.connectors import full
from detkd.losses.neck import NeckTerm


def feature_l1_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of two maps, over images, channels and cells.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient.

    Returns:
        scalar >= 0; float64 for float64, else float32.

    Source: a baseline of de Rijk et al., NeurIPS 2022.
    """
    return (full(student) - full(teacher.detach())).abs().mean()


class FeatureL1(NeckTerm):
    """The student's neck maps are the teacher's; see :func:`feature_l1_loss`, summed over levels.

    Args:
        levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution.
    """

    name = "feature_l1"

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return feature_l1_loss(student, teacher)
