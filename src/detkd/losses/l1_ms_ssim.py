"""L1 + MS-SSIM loss: values and local statistics of feature maps, mixed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.chunks import Per, rescaled_mean
from detkd.losses.connectors import Connectors, full, over_levels
from detkd.losses.ms_ssim import SIZES, check_sizes, ms_ssim_loss
from detkd.losses.smoothing import Window
from detkd.losses.step import Step


def rescaled_l1_loss(student: Tensor, teacher: Tensor, per: Per = "sample") -> Tensor:
    """Mean absolute difference of two maps, each rescaled to [0, 1].

    Args:
        student, teacher: (B, C, H, W), of one shape. per: see :func:`~detkd.losses.ssim.ssim_loss`.

    Returns:
        scalar from 0 to 1; float64 for float64, else float32. The gradient goes to the student alone; differentiable once.
    """

    def loss(x: Tensor, y: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        difference = x - y
        return difference.abs().sum(), difference.sign() if wanted else None

    return rescaled_mean(loss, full(student), full(teacher).to(full(student)), per)


class L1MSSSIM(nn.Module):
    """``(1 - share) L1 + share MS-SSIM`` of rescaled maps; see :func:`rescaled_l1_loss` and :func:`~detkd.losses.ms_ssim.ms_ssim_loss`.

    Args:
        share: of MS-SSIM, from 0 to 1. per, window, sizes: as there. levels: see :func:`~detkd.losses.connectors.match_levels`.

    One connector a level serves both parts. pools_batch: True where ``per`` is "level"; needs_teacher: True.

    Source: de Rijk et al., NeurIPS 2022 (0.15 / 0.85), after Zhao et al., 2017. The paper does not say whether L1 sees rescaled maps; here it
    does, so that the two parts have one range. Raises InputError for options out of range.
    """

    needs_teacher = True

    def __init__(
        self,
        share: float = 0.85,
        per: Per = "sample",
        window: Window = "gaussian",
        sizes: Sequence[int] = SIZES,
        levels: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_sizes("l1_ms_ssim", per, window, sizes)
        if not 0 <= share <= 1:
            raise InputError(f"loss.l1_ms_ssim.share: expected a value from 0 to 1, got {share}")
        self.pools_batch = per == "level"
        self.share, self.per, self.window, self.sizes = float(share), per, window, tuple(sizes)
        self.connectors = Connectors(levels=levels)

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Pair the levels and build the connectors. Raises InputError where levels do not match."""
        self.connectors.setup(student, teacher, "l1_ms_ssim")

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Two parts, "l1" and "ms_ssim", each with its share: float32 scalars, summed over levels."""
        pairs = self.connectors(step)
        return {
            "l1": (1 - self.share) * over_levels(pairs, lambda s, t: rescaled_l1_loss(s, t, self.per)),
            "ms_ssim": self.share * over_levels(pairs, lambda s, t: ms_ssim_loss(s, t, self.per, self.window, self.sizes)),
        }
