from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.ms_ssim import MSSSIM, ms_ssim_loss
from detkd.losses.ssim import ssim_loss
from detkd.losses.step import Step

C1, C2 = 0.01**2, 0.03**2


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference(student: Any, teacher: Any, window: str, sizes: tuple[int, ...]) -> float:
    """Cell by cell, each image rescaled."""
    x, y = ((m - m.min((1, 2, 3), keepdims=True)) / np.ptp(m, (1, 2, 3), keepdims=True) for m in (student, teacher))
    height, width = x.shape[2:]
    values = []
    for i in range(height):
        for j in range(width):
            product: Any = 1.0
            for size in sizes:
                rows = np.arange(max(0, i - size // 2), min(height, i + size // 2 + 1))
                columns = np.arange(max(0, j - size // 2), min(width, j + size // 2 + 1))
                distance = (rows[:, None] - i) ** 2 + (columns - j) ** 2
                w = np.exp(-distance / (2 * (size * 1.5 / 11) ** 2)) if window == "gaussian" else np.ones(distance.shape)
                w = w / w.sum()
                a, b = x[:, :, rows][:, :, :, columns], y[:, :, rows][:, :, :, columns]
                mean_a, mean_b = (w * a).sum((2, 3)), (w * b).sum((2, 3))
                da, db = a - mean_a[:, :, None, None], b - mean_b[:, :, None, None]
                product = product * (2 * (w * da * db).sum((2, 3)) + C2) / ((w * (da**2 + db**2)).sum((2, 3)) + C2)
                if size == max(sizes):
                    product = product * (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
            values.append((1 - product) / 2)
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (1, 2, 13, 7), (1, 2, 1, 6)])
@pytest.mark.parametrize(("window", "sizes"), [("gaussian", (3, 5, 7, 9, 11)), ("uniform", (3, 7)), ("gaussian", (7, 3))])
def test_equals_the_formula_in_float64(shape: Any, window: Any, sizes: Any) -> None:
    student = maps(shape, 0)
    teacher = 0.3 * maps(shape, 1) + student
    expected = reference(student.numpy(), teacher.numpy(), window, sizes)
    assert ms_ssim_loss(student, teacher, "sample", window, sizes).item() == pytest.approx(expected, rel=1e-8)


def test_one_window_is_ssim() -> None:
    student, teacher = maps((2, 3, 9, 7), 0), maps((2, 3, 9, 7), 1)
    torch.testing.assert_close(ms_ssim_loss(student, teacher, sizes=[11]), ssim_loss(student, teacher))


@pytest.mark.parametrize("per", ["level", "sample", "channel"])
def test_gradient_in_double_reaches_the_student_alone(per: Any) -> None:
    student = maps((2, 2, 6, 4), 0).requires_grad_()
    teacher = (0.3 * maps((2, 2, 6, 4), 1) + student.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ms_ssim_loss(s, teacher, per), student)
    ms_ssim_loss(student, teacher, per).backward()
    assert teacher.grad is None


def test_zero_when_equal() -> None:
    student = maps((2, 3, 9, 7), 0)
    assert ms_ssim_loss(student, student).item() == pytest.approx(0, abs=1e-12)


def test_float32_inside() -> None:
    student, teacher = (maps((2, 3, 9, 7), seed, torch.bfloat16) for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = ms_ssim_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(ms_ssim_loss(student.double(), teacher.double()).item(), rel=1e-4)


@pytest.mark.parametrize("options", [{"per": "image"}, {"window": "box"}, {"sizes": []}, {"sizes": [3, 4]}])
def test_options_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(InputError, match=r"loss\.ms_ssim"):
        MSSSIM(**options)


def test_term_sums_over_levels(tiny_detector: Any) -> None:
    torch.manual_seed(0)
    student, teacher, term = tiny_detector(width=4), tiny_detector(), MSSSIM(sizes=[3, 5], levels=["c2", "c3"])
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64)
    step = Step(images, [], teacher, teacher(images), student, student(images))
    values, pairs = term(step), term.connectors(step)
    assert list(values) == ["ms_ssim"]
    expected = torch.stack([ms_ssim_loss(s, t, sizes=[3, 5]) for s, t in pairs.values()]).sum()
    torch.testing.assert_close(values["ms_ssim"], expected)
    values["ms_ssim"].backward()
    assert all(p.grad is not None for p in term.parameters())
