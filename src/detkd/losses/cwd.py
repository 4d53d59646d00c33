"""CWD: each channel of a neck map as a distribution over space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.neck import NeckTerm


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


class CWD(NeckTerm):
    """The student's channels look where the teacher's look; see :func:`cwd_loss`, summed over levels.

    Args:
        tau: as there. levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution. Raises InputError unless tau > 0.
    """

    name = "cwd"

    def __init__(self, tau: float = 1.0, levels: Sequence[str] | None = None) -> None:
        super().__init__(levels)
        if not tau > 0:
            raise InputError(f"loss.cwd.tau: expected a positive temperature, got {tau}")
        self.tau = float(tau)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return cwd_loss(student, teacher, self.tau)
