from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_msssim
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.connectors import Connectors
from detkd.losses.smoothing import Smoothing
from detkd.losses.ssim import SSIM, similarity, ssim_loss
from detkd.losses.step import Step

C1, C2 = 0.01**2, 0.03**2


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rescaled(x: Any, per: str) -> Any:
    axes = {"level": (0, 1, 2, 3), "sample": (1, 2, 3), "channel": (2, 3)}[per]
    low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    return np.where(high - low > 1e-6, (x - low) / np.where(high > low, high - low, 1), 0)


def reference(
    student: Any,
    teacher: Any,
    per: str = "sample",
    window: str = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
    alpha: float = 1,
    beta: float = 1,
    gamma: float = 1,
    unbiased: bool = False,
) -> float:
    """Cell by cell, with deviations from the local mean."""
    x, y = rescaled(student, per), rescaled(teacher, per)
    height, width = x.shape[2:]
    values = []
    for i in range(height):
        for j in range(width):
            rows = np.arange(max(0, i - size // 2), min(height, i + size // 2 + 1))
            columns = np.arange(max(0, j - size // 2), min(width, j + size // 2 + 1))
            distance = (rows[:, None] - i) ** 2 + (columns - j) ** 2
            w = np.exp(-distance / (2 * sigma**2)) if window == "gaussian" else np.ones(distance.shape)
            w = w / w.sum()
            a, b = x[:, :, rows][:, :, :, columns], y[:, :, rows][:, :, :, columns]
            mean_a, mean_b = (w * a).sum((2, 3), keepdims=True), (w * b).sum((2, 3), keepdims=True)
            k = 1 / (1 - (w**2).sum()) if unbiased and w.size > 1 else 1
            va, vb = k * (w * (a - mean_a) ** 2).sum((2, 3)), k * (w * (b - mean_b) ** 2).sum((2, 3))
            cov = k * (w * (a - mean_a) * (b - mean_b)).sum((2, 3))
            mean_a, mean_b = mean_a[:, :, 0, 0], mean_b[:, :, 0, 0]
            luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
            if beta == gamma == 1:
                rest = (2 * cov + C2) / (va + vb + C2)
            else:
                va, vb = np.maximum(va, 1e-8), np.maximum(vb, 1e-8)
                contrast = (2 * np.sqrt(va * vb) + C2) / (va + vb + C2)
                structure = (cov + C2 / 2) / (np.sqrt(va * vb) + C2 / 2)
                structure = structure if gamma == int(gamma) else np.maximum(structure, 1e-8)
                rest = contrast**beta * structure**gamma
            values.append((1 - luminance**alpha * rest) / 2)
    return float(np.mean(values))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"per": "level"},
    {"per": "channel"},
    {"window": "uniform", "size": 5},
    {"window": "uniform", "size": 3, "unbiased": True},
    {"unbiased": True},
    {"size": 3, "sigma": 0.7},
    {"alpha": 0},
    {"alpha": 0, "beta": 0},
    {"beta": 0.5},
    {"alpha": 2, "gamma": 0, "unbiased": True},
    {"gamma": 0.5},
    {"gamma": 2},
]


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (1, 2, 13, 7), (2, 1, 1, 1), (1, 2, 1, 6)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_formula_in_float64(shape: Any, options: Any) -> None:
    student = maps(shape, 0)
    teacher = 0.3 * maps(shape, 1) + student
    expected = reference(student.numpy(), teacher.numpy(), **options)
    assert ssim_loss(student, teacher, **options).item() == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_in_double_reaches_the_student_alone(options: Any) -> None:
    student = maps((2, 2, 6, 4), 0).requires_grad_()
    teacher = (0.3 * maps((2, 2, 6, 4), 1) + student.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ssim_loss(s, teacher, **options), student)
    ssim_loss(student, teacher, **options).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_zero_when_equal_and_between_zero_and_one(options: Any) -> None:
    student = maps((2, 3, 9, 7), 0)
    assert ssim_loss(student, student, **options).item() == pytest.approx(0, abs=1e-4)
    assert ssim_loss(student.float(), student.float()).item() == pytest.approx(0, abs=1e-6)
    assert 0 < ssim_loss(student, maps((2, 3, 9, 7), 1)).item() < 1


@pytest.mark.parametrize("per", ["level", "sample", "channel"])
def test_blind_to_shift_and_scale_of_what_shares_its_extremes(per: Any) -> None:
    student, teacher = maps((2, 3, 6, 6), 0), maps((2, 3, 6, 6), 1)
    factor = {"level": torch.tensor(2.0), "sample": torch.rand(2, 1, 1, 1) + 0.5, "channel": torch.rand(2, 3, 1, 1) + 0.5}[per]
    torch.testing.assert_close(ssim_loss(factor * student - 3, teacher, per=per), ssim_loss(student, teacher, per=per))


def test_by_sample_a_batch_is_the_mean_of_its_images() -> None:
    student, teacher = maps((3, 2, 8, 8), 0), maps((3, 2, 8, 8), 1)
    singles = [ssim_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(ssim_loss(student, teacher), torch.stack(singles).mean())


def test_equals_pytorch_msssim_away_from_the_borders() -> None:
    inner = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = (inner + 0.2 * torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).clamp(
        max=1
    )
    for m in (inner, other):
        m[:, 0, 0, 0], m[:, 0, 0, 1] = 0, 1  # so that rescaling changes nothing
    planes = [m.flatten(0, 1).transpose(0, 1) for m in (inner, other)]  # rows before planes
    ours = similarity(*planes, Smoothing(24, 20, "gaussian", 11, 1.5, inner), (1, 1, 1))[5:-5, :, 5:-5]
    # theirs has cells whose whole window is inside alone
    theirs = pytorch_msssim.ssim(inner, other, data_range=1, size_average=False, nonnegative_ssim=False)
    torch.testing.assert_close(ours.transpose(0, 1).reshape(2, -1).mean(1), theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("side", [70, 200])
def test_gradient_by_formula_is_torchs_own_on_large_maps(side: int) -> None:
    student, teacher = maps((1, 2, side, 33), 0, torch.float32), maps((1, 2, side, 33), 1, torch.float32)
    gradients = []
    for alpha in (1.0, 1 + 1e-12):  # the second takes the way of any exponents
        leaf = student.clone().requires_grad_()
        gradients.append(torch.autograd.grad(ssim_loss(leaf, teacher, alpha=alpha), leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3 * gradients[1].abs().max().item())


def test_a_flat_map_has_a_finite_loss_and_gradient() -> None:
    student = torch.zeros(2, 3, 5, 5, requires_grad=True)
    for options in OPTIONS:
        loss = ssim_loss(student, maps((2, 3, 5, 5), 1, torch.float32), **options)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_float32_inside_whatever_autocast_and_matmul_precision_say() -> None:
    student, teacher = (maps((2, 3, 16, 16), seed, torch.bfloat16) for seed in (0, 1))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            loss = ssim_loss(student, teacher)
    finally:
        torch.set_float32_matmul_precision(before)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(ssim_loss(student.double(), teacher.double()).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "image"}, "loss.ssim.per"),
        ({"window": "box"}, "loss.ssim.window"),
        ({"size": 4}, "odd number of cells, got 4"),
        ({"sigma": 0}, "loss.ssim.sigma"),
        ({"gamma": -1}, "exponents"),
        ({"alpha": 0, "beta": 0, "gamma": 0}, "exponents"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SSIM(**options)


def test_pools_the_batch_only_where_it_shares_extremes() -> None:
    assert SSIM(per="level").pools_batch
    assert not SSIM().pools_batch


@pytest.mark.parametrize("width", [8, 4, 12])
def test_term_sums_over_levels_and_takes_any_width(tiny_detector: Any, width: int) -> None:
    torch.manual_seed(0)
    student, teacher, term = tiny_detector(width=width), tiny_detector(), SSIM(gamma=2, levels=["c2", "c3"])
    term.setup(student, teacher)
    assert isinstance(term.connectors, Connectors)
    images = torch.rand(2, 3, 64, 64)
    step = Step(images, [], teacher, teacher(images), student, student(images))
    values = term(step)
    assert list(values) == ["ssim"]
    pairs = term.connectors(step)
    torch.testing.assert_close(values["ssim"], torch.stack([ssim_loss(s, t, gamma=2) for s, t in pairs.values()]).sum())
    with torch.autocast("cpu", torch.bfloat16):
        low = term(Step(images, None, teacher, teacher(images), student, student(images)))["ssim"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(values["ssim"].item(), rel=0.1)
    values["ssim"].backward()
    assert all(p.grad is not None for p in term.parameters())


def test_one_channels_last_map_has_the_gradient_of_a_plain_one() -> None:
    maps, teacher = torch.rand(1, 4, 12, 9), torch.rand(1, 4, 12, 9)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        student = maps.clone(memory_format=layout).requires_grad_()
        ssim_loss(student, teacher).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)
