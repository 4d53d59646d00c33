from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.cwd import CWD, cwd_loss
from detkd.losses.step import Step

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 2, 1, 7)]


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference(student: Any, teacher: Any, tau: float) -> float:
    def softmax(maps: Any) -> Any:
        rows = np.exp(maps.reshape(*maps.shape[:2], -1) / tau)
        return rows / rows.sum(2, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    return float(tau**2 / student.shape[1] * (p * np.log(p / q)).sum((1, 2)).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_equals_the_formula_in_float64(shape: Any, tau: float) -> None:
    student, teacher = maps(shape, 0), maps(shape, 1)
    assert cwd_loss(student, teacher, tau).item() == pytest.approx(
        reference(student.numpy(), teacher.numpy(), tau), rel=1e-10, abs=1e-12
    )


def test_gradient_in_double_reaches_the_student_alone() -> None:
    student, teacher = maps((2, 3, 4, 3), 0).requires_grad_(), maps((2, 3, 4, 3), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: cwd_loss(s, teacher), student)
    cwd_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_zero_when_equal() -> None:
    student = maps((2, 3, 5, 4), 0)
    assert cwd_loss(student, student).item() == pytest.approx(0, abs=1e-12)


def test_large_values_stay_finite() -> None:
    student, teacher = 1e4 * maps((1, 2, 4, 4), 0, torch.float32), 1e4 * maps((1, 2, 4, 4), 1, torch.float32)
    assert torch.isfinite(cwd_loss(student, teacher))


def test_float32_inside() -> None:
    student, teacher = (maps((2, 3, 5, 4), seed, torch.bfloat16).requires_grad_() for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cwd_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(cwd_loss(student.double(), teacher.double()).item(), rel=1e-5)


def test_tau_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"loss.cwd.tau: .* got -1"):
        CWD(-1)


@pytest.mark.parametrize("width", [8, 4, 12])
def test_term_sums_over_levels_and_takes_any_width(tiny_detector: Any, width: int) -> None:
    torch.manual_seed(0)
    student, teacher, term = tiny_detector(width=width), tiny_detector(), CWD(levels=["c2", "c3"])
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64)
    step = Step(images, [], teacher, teacher(images), student, student(images))
    values = term(step)
    assert list(values) == ["cwd"]
    pairs = term.connectors(step)
    torch.testing.assert_close(values["cwd"], torch.stack([cwd_loss(s, t) for s, t in pairs.values()]).sum())
    assert list(pairs) == ["c2", "c3"]
    with torch.autocast("cpu", torch.bfloat16):
        low = term(Step(images, None, teacher, teacher(images), student, student(images)))["cwd"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(values["cwd"].item(), rel=0.1, abs=1e-3)
    values["cwd"].backward()
    assert all(p.grad is not None for p in term.parameters())
    assert all(p.grad is None for p in teacher.parameters())
