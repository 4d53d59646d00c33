from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.losses.pkd import PKD, pkd_loss
from detkd.losses.step import Step

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 2, 1, 7)]


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference(student: Any, teacher: Any) -> float:
    def standardised(maps: Any) -> Any:
        rows = maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1)
        return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-6)

    return float(((standardised(student) - standardised(teacher)) ** 2).mean() / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula_in_float64(shape: Any) -> None:
    student, teacher = maps(shape, 0), maps(shape, 1)
    assert pkd_loss(student, teacher).item() == pytest.approx(reference(student.numpy(), teacher.numpy()), rel=1e-10, abs=1e-12)


def test_gradient_in_double_reaches_the_student_alone() -> None:
    student, teacher = maps((2, 3, 4, 3), 0).requires_grad_(), maps((2, 3, 4, 3), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: pkd_loss(s, teacher), student)
    pkd_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_zero_when_equal() -> None:
    student = maps((2, 3, 5, 4), 0)
    assert pkd_loss(student, student).item() == pytest.approx(0, abs=1e-12)


def test_is_one_minus_pearsons_correlation_and_blind_to_scale_and_shift() -> None:
    student, teacher = maps((2, 3, 6, 5), 0), maps((2, 3, 6, 5), 1)
    rows = [m.transpose(0, 1).reshape(3, -1).numpy() for m in (student, teacher)]
    expected = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*rows)])
    assert pkd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    factor = torch.tensor([2.0, 0.5, 7.0], dtype=torch.float64)[:, None, None]
    assert pkd_loss(factor * student + 3, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_a_dead_channel_has_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = pkd_loss(student, maps((2, 3, 4, 4), 1, torch.float32))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0.5, rel=1e-4)
    assert torch.isfinite(gradient).all()


def test_float32_inside() -> None:
    student, teacher = (maps((2, 3, 5, 4), seed, torch.bfloat16).requires_grad_() for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = pkd_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(pkd_loss(student.double(), teacher.double()).item(), rel=1e-5)


@pytest.mark.parametrize("width", [8, 4, 12])
def test_term_sums_over_levels_and_takes_any_width(tiny_detector: Any, width: int) -> None:
    torch.manual_seed(0)
    student, teacher, term = tiny_detector(width=width), tiny_detector(), PKD(levels=["c2", "c3"])
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64)
    step = Step(images, [], teacher, teacher(images), student, student(images))
    values = term(step)
    assert list(values) == ["pkd"]
    pairs = term.connectors(step)
    torch.testing.assert_close(values["pkd"], torch.stack([pkd_loss(s, t) for s, t in pairs.values()]).sum())
    assert list(pairs) == ["c2", "c3"]
    with torch.autocast("cpu", torch.bfloat16):
        low = term(Step(images, None, teacher, teacher(images), student, student(images)))["pkd"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(values["pkd"].item(), rel=0.1, abs=1e-3)
    values["pkd"].backward()
    assert all(p.grad is not None for p in term.parameters())
    assert all(p.grad is None for p in teacher.parameters())
