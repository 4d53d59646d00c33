"""CWD: each channel of a neck map as a distribution over space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.connectors import Connectors, full, over_levels
from detkd.losses.step import Step


def cwd_loss(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """tau^2 / C * sum over channels of KL(teacher || student), mean over images.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient. tau: temperature > 0 of the softmax over the H*W cells.

    Returns:
        scalar >= 0; float64 for float64, else float32.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, equations 2 to 4.
    """
    mine, theirs = (F.log_softmax(full(m).flatten(2) / tau, dim=2) for m in (student, teacher.detach()))  # (B, C, H*W)
    return tau**2 * F.kl_div(mine, theirs, reduction="sum", log_target=True) / (student.shape[0] * student.shape[1])


class CWD(nn.Module):
    """The student's channels look where the teacher's look; see :func:`cwd_loss`, summed over levels.

    Args:
        tau: as there. levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution. Raises InputError unless tau > 0.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, tau: float = 1.0, levels: Sequence[str] | None = None) -> None:
        super().__init__()
        if not tau > 0:
            raise InputError(f"loss.cwd.tau: expected a positive temperature, got {tau}")
        self.tau = float(tau)
        self.connectors = Connectors(levels=levels)

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Pair the levels and build the connectors. Raises InputError where levels do not match."""
        self.connectors.setup(student, teacher, "cwd")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "cwd": float32 scalar."""
        return {"cwd": over_levels(self.connectors(step), lambda s, t: cwd_loss(s, t, self.tau))}
