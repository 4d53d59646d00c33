"""SSIM loss: the local means, contrasts and structures of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.chunks import Per, check_per, rescaled_mean
from detkd.losses.connectors import full
from detkd.losses.neck import NeckTerm
from detkd.losses.smoothing import Smoothing, Window, check_window, exact_products

C1, C2 = 0.01**2, 0.03**2
C3 = C2 / 2
_LEAST_VARIANCE = 1e-8


def ssim_loss(
    student: Tensor,
    teacher: Tensor,
    per: Per = "sample",
    window: Window = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    unbiased: bool = False,
) -> Tensor:
    """(1 - SSIM) / 2 of two maps, each rescaled to [0, 1], mean over images, channels and cells.

    Args:
        student, teacher: (B, C, H, W) of any size. per: what shares one minimum and maximum: the whole map ("level"), one image of it
            ("sample"), or one channel of an image ("channel"). A part whose values differ by less than 1e-6 becomes zeros.
        window, size, sigma: of the local statistics, in cells; cut and renormalised at the borders.
        alpha, beta, gamma: exponents of luminance, contrast and structure; see :func:`similarity`.
        unbiased: divide variances and covariances by 1 - sum w^2, which for n equal weights is (n - 1) / n.

    Returns:
        scalar from 0 (equal up to a shift and a positive factor a part) to 1; float64 for float64, else float32. The gradient, through minimum
        and maximum too, goes to the student alone; the result is differentiable once.

    Source: de Rijk et al., Structural Knowledge Distillation for Object Detection, NeurIPS 2022, section 3; SSIM of Wang et al., 2004. The
    paper does not say what shares a minimum and maximum, nor how borders are treated.
    """
    with torch.autocast(student.device.type, enabled=False), exact_products():
        mine, theirs = full(student), full(teacher)
        smooth = Smoothing(mine.shape[-2], mine.shape[-1], window, size, sigma, mine)
        correction = smooth.unbiased()[:, None] if unbiased else None
        if alpha == beta == gamma == 1:
            return rescaled_mean(_PlainLoss(smooth, correction), mine, theirs.to(mine), per)

        def loss(x: Tensor, y: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
            with torch.set_grad_enabled(wanted):
                x = x.detach().requires_grad_(wanted)
                value = ((1 - similarity(x, y, smooth, (alpha, beta, gamma), correction)) / 2).sum()
            return value.detach(), torch.autograd.grad(value, x)[0] if wanted else None

        return rescaled_mean(loss, mine, theirs.to(mine), per)


def similarity(
    student: Tensor, teacher: Tensor, smooth: Smoothing, exponents: tuple[float, float, float], correction: Tensor | None = None
) -> Tensor:
    """Local l^alpha c^beta s^gamma of planes in [0, 1], (H, n, W) each; same shape.

    l = (2 m_S m_T + C1) / (m_S^2 + m_T^2 + C1), c = (2 s_S s_T + C2) / (s_S^2 + s_T^2 + C2), s = (s_ST + C3) / (s_S s_T + C3).
    With beta = gamma = 1, c s is (2 s_ST + C2) / (s_S^2 + s_T^2 + C2), which has no root. Otherwise variances are clamped at 1e-8 before the
    root, and so are the bases of exponents that are no whole numbers: s may be negative.

    Args:
        correction: (H, 1, W) factors of variances and covariance, or None.
    """
    alpha, beta, gamma = exponents
    scale = 1.0 if correction is None else correction
    with torch.no_grad():
        mean_t, square_t = smooth(torch.stack([teacher, teacher.square()])).unbind()
    mean_s, square_s, product = smooth(torch.stack([student, student.square(), student * teacher])).unbind()
    variance_s, variance_t = scale * (square_s - mean_s.square()), scale * (square_t - mean_t.square())
    covariance = scale * (product - mean_s * mean_t)
    luminance = (2 * mean_s * mean_t + C1) / (mean_s.square() + mean_t.square() + C1)
    if beta == gamma == 1:
        return _power(luminance, alpha) * (2 * covariance + C2) / (variance_s + variance_t + C2)
    variance_s, variance_t = variance_s.clamp(min=_LEAST_VARIANCE), variance_t.clamp(min=_LEAST_VARIANCE)
    deviations = (variance_s * variance_t).sqrt()
    contrast = (2 * deviations + C2) / (variance_s + variance_t + C2)
    structure = (covariance + C3) / (deviations + C3)
    return _power(luminance, alpha) * _power(contrast, beta) * _power(structure, gamma)


def _power(base: Tensor, exponent: float) -> Tensor:
    if exponent == 1:
        return base
    return base**exponent if float(exponent).is_integer() else base.clamp(min=_LEAST_VARIANCE) ** exponent


class _PlainLoss:
    """The sum of (1 - l c s) / 2 and its gradient, with exponents 1: four windows, and three for the gradient.

    With a, b the means, p = E[x^2 + y^2], r = E[x y], k the correction, q = a^2 + b^2 and m = a b:
        l = (2 m + C1) / (q + C1),  z = c s = (2 k (r - m) + C2) / (k (p - q) + C2),  u = k l / (k (p - q) + C2)
        half the derivatives of l z:  to r: u;  to p: -u z / 2;  to a: z (b - a l) / (q + C1) + u (a z - b).
    All in memory that is taken once, since time goes into reading and writing it.
    """

    def __init__(self, smooth: Smoothing, correction: Tensor | None) -> None:
        self.smooth, self.correction = smooth, correction
        self.memory: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        if self.memory is None or self.memory.shape[2:] != x.shape:
            self.memory = x.new_empty(3, 4, *x.shape)
        stack, scratch, means = self.memory
        stack[0].copy_(x)
        stack[1].copy_(y)
        torch.mul(x, x, out=stack[2]).addcmul_(y, y)
        torch.mul(x, y, out=stack[3])
        a, b, p, r = self.smooth.write(stack, scratch, means)
        c1 = x.new_full((), C1)
        q = torch.addcmul(c1, a, a, out=stack[0]).addcmul_(b, b)  # q + C1
        m = torch.addcmul(c1, a, b, value=2, out=stack[1])  # 2 m + C1
        if self.correction is None:
            p.sub_(q).add_(C1 + C2)
            r = torch.add(c1 + C2, r, alpha=2, out=r).sub_(m)
        else:
            p.sub_(q).add_(C1).mul_(self.correction).add_(C2)
            r = torch.add(c1, r, alpha=2, out=r).sub_(m).mul_(self.correction).add_(C2)
        z, luminance = r.div_(p), m.div_(q)
        value = (x.numel() - torch.dot(luminance.view(-1), z.view(-1))) / 2
        if not wanted:
            return value, None
        gradients = stack[1:]  # to a, r and p; luminance is in the place of the first
        u = torch.div(luminance, p, out=gradients[1])
        if self.correction is not None:
            u.mul_(self.correction)
        uz = torch.mul(u, z, out=gradients[2])
        to_a = torch.addcmul(b, a, luminance, value=-1, out=gradients[0]).mul_(z).div_(q)
        to_a.addcmul_(a, uz).addcmul_(u, b, value=-1)
        to_mean, to_product, to_square = self.smooth.write(gradients, scratch[:3], means[:3], transposed=True)
        # (1 - l z) / 2 falls where l z rises
        return value, to_square.mul_(x).addcmul_(to_product, y, value=-1).sub_(to_mean)


class SSIM(NeckTerm):
    """The student's neck maps have the local statistics of the teacher's; see :func:`ssim_loss`, summed over levels.

    Args:
        per, window, size, sigma, alpha, beta, gamma, unbiased: as there. levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: True where ``per`` is "level"; needs_teacher: True. Channels that differ go through a 1x1 convolution.
    Raises InputError for options out of range.
    """

    name = "ssim"

    def __init__(
        self,
        per: Per = "sample",
        window: Window = "gaussian",
        size: int = 11,
        sigma: float = 1.5,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        unbiased: bool = False,
        levels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(levels)
        check_per("ssim", per)
        check_window("ssim", window, size, sigma)
        exponents = {"alpha": alpha, "beta": beta, "gamma": gamma}
        if min(exponents.values()) < 0 or not any(exponents.values()):
            raise InputError(f"loss.ssim: expected exponents >= 0, one of them more, got {exponents}")
        self.pools_batch = per == "level"
        self.compare_maps = partial(
            ssim_loss,
            per=per,
            window=window,
            size=size,
            sigma=float(sigma),
            alpha=float(alpha),
            beta=float(beta),
            gamma=float(gamma),
            unbiased=unbiased,
        )

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.compare_maps(student, teacher)
