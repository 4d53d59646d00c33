"""PKD: neck maps compared after each channel is standardised, which is their Pearson correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from detkd.losses.connectors import full
from detkd.losses.neck import NeckTerm

_EPS = 1e-6


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean square difference of two maps whose channels have mean 0 and variance 1 over the batch and its cells.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient.

    Returns:
        scalar >= 0; float64 for float64, else float32. Where variances are far above 1e-6 it is 1 - r, r being Pearson's correlation, mean over
        channels.

    Source: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient, NeurIPS 2022,
    equations 1 to 3. The released code divides by the unbiased deviation + 1e-6; here it is sqrt(biased variance + 1e-6), whose gradient is finite
    for a constant channel.
    """
    return (_standardised(full(student)) - _standardised(full(teacher.detach()))).square().mean() / 2


def _standardised(maps: Tensor) -> Tensor:
    variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0, keepdim=True)  # (1, C, 1, 1)
    return (maps - mean) * (variance + _EPS).rsqrt()


class PKD(NeckTerm):
    """The student's neck maps rise and fall with the teacher's, channel by channel; see :func:`pkd_loss`, summed over levels.

    Args:
        levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: True, statistics are of the batch (and of one process); needs_teacher: True. Channels that differ go through a 1x1 convolution.
    """

    name = "pkd"
    pools_batch = True

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return pkd_loss(student, teacher)
