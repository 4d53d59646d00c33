"""MS-SSIM loss: local statistics of feature maps under windows of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.chunks import Per, check_per, rescaled_mean
from detkd.losses.connectors import full
from detkd.losses.neck import NeckTerm
from detkd.losses.smoothing import Smoothing, Window, check_window, exact_products
from detkd.losses.ssim import similarity

SIZES = (3, 5, 7, 9, 11)
# sigma of a Gaussian over the size of its window: that of SSIM, 1.5 at 11
_SIGMA = 1.5 / 11


def ms_ssim_loss(
    student: Tensor, teacher: Tensor, per: Per = "sample", window: Window = "gaussian", sizes: Sequence[int] = SIZES
) -> Tensor:
    """(1 - MS-SSIM) / 2 of two maps, each rescaled to [0, 1], mean over images, channels and cells.

    MS-SSIM = l_M * product over j of (c s)_j, a window of ``sizes[j]`` cells each, all on the same map; l_M is the luminance under the
    largest. l and c s are those of SSIM, with exponents 1.

    Args:
        student, teacher: (B, C, H, W) of any size. per: see :func:`~detkd.losses.ssim.ssim_loss`.
        window: "gaussian" with sigma 1.5/11 of its size, or "uniform". sizes: in cells, odd.

    Returns:
        scalar from 0 to 1; float64 for float64, else float32. The gradient goes to the student alone; differentiable once.

    Source: de Rijk et al., NeurIPS 2022, who vary the window on one map and not the map; the product is that of Zhao et al., Loss Functions
    for Image Restoration with Neural Networks, 2017, equation 8. The sizes are ours: the paper prints none.
    """
    with torch.autocast(student.device.type, enabled=False), exact_products():
        mine, theirs = full(student), full(teacher)
        height, width = mine.shape[-2:]
        windows = [Smoothing(height, width, window, size, size * _SIGMA, mine) for size in sorted(sizes)]

        def loss(x: Tensor, y: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
            with torch.set_grad_enabled(wanted):
                x = x.detach().requires_grad_(wanted)
                product = similarity(x, y, windows[-1], (1, 1, 1))
                for smooth in windows[:-1]:
                    product = product * similarity(x, y, smooth, (0, 1, 1))
                value = ((1 - product) / 2).sum()
            return value.detach(), torch.autograd.grad(value, x)[0] if wanted else None

        return rescaled_mean(loss, mine, theirs.to(mine), per)


class MSSSIM(NeckTerm):
    """The student's neck maps have the teacher's local statistics under several windows; see :func:`ms_ssim_loss`, summed over levels.

    Args:
        per, window, sizes: as there. levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: True where ``per`` is "level"; needs_teacher: True. Channels that differ go through a 1x1 convolution.
    Raises InputError for options out of range.
    """

    name = "ms_ssim"

    def __init__(
        self,
        per: Per = "sample",
        window: Window = "gaussian",
        sizes: Sequence[int] = SIZES,
        levels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(levels)
        check_sizes("ms_ssim", per, window, sizes)
        self.pools_batch = per == "level"
        self.per, self.window, self.sizes = per, window, tuple(sizes)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return ms_ssim_loss(student, teacher, self.per, self.window, self.sizes)


def check_sizes(term: str, per: str, window: str, sizes: Sequence[int]) -> None:
    """Raises InputError, naming the term's key, unless the options are known and the sizes odd, and one at least."""
    check_per(term, per)
    if not sizes:
        raise InputError(f"loss.{term}.sizes: expected at least one window, got none")
    for size in sizes:
        check_window(term, window, size, 1.0)
