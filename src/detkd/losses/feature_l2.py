"""Feature L2: square differences of neck maps."""

from __future__ import annotations

from torch import Tensor

from detkd.losses.connectors import full
from detkd.losses.neck import NeckTerm


def feature_l2_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of two maps, over images, channels and cells.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient.

    Returns:
        scalar >= 0; float64 for float64, else float32.

    Source: hints (Romero et al., FitNets, ICLR 2015); a baseline of de Rijk et al., NeurIPS 2022.
    """
    return (full(student) - full(teacher.detach())).square().mean()


class FeatureL2(NeckTerm):
    """The student's neck maps are the teacher's; see :func:`feature_l2_loss`, summed over levels.

    Args:
        levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution.
    """

    name = "feature_l2"

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return feature_l2_loss(student, teacher)
