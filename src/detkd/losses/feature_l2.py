"""Feature L2: square differences of neck maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.losses.connectors import Connectors, full, over_levels
from detkd.losses.step import Step


def feature_l2_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of two maps, over images, channels and cells.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient.

    Returns:
        scalar >= 0; float64 for float64, else float32.

    Source: hints (Romero et al., FitNets, ICLR 2015); a baseline of de Rijk et al., NeurIPS 2022.
    """
    return (full(student) - full(teacher.detach())).square().mean()


class FeatureL2(nn.Module):
    """The student's neck maps are the teacher's; see :func:`feature_l2_loss`, summed over levels.

    Args:
        levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, levels: Sequence[str] | None = None) -> None:
        super().__init__()
        self.connectors = Connectors(levels=levels)

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Pair the levels and build the connectors. Raises InputError where levels do not match."""
        self.connectors.setup(student, teacher, "feature_l2")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "feature_l2": float32 scalar."""
        return {"feature_l2": over_levels(self.connectors(step), feature_l2_loss)}
