from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.losses.feature_l1 import FeatureL1, feature_l1_loss
from detkd.losses.step import Step

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 2, 1, 7)]


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference(student: Any, teacher: Any) -> float:
    return float(np.abs(student - teacher).mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula_in_float64(shape: Any) -> None:
    student, teacher = maps(shape, 0), maps(shape, 1)
    assert feature_l1_loss(student, teacher).item() == pytest.approx(
        reference(student.numpy(), teacher.numpy()), rel=1e-10, abs=1e-12
    )


def test_gradient_in_double_reaches_the_student_alone() -> None:
    student, teacher = maps((2, 3, 4, 3), 0).requires_grad_(), maps((2, 3, 4, 3), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: feature_l1_loss(s, teacher), student)
    feature_l1_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_zero_when_equal() -> None:
    student = maps((2, 3, 5, 4), 0)
    assert feature_l1_loss(student, student).item() == pytest.approx(0, abs=1e-12)


def test_float32_inside() -> None:
    student, teacher = (maps((2, 3, 5, 4), seed, torch.bfloat16).requires_grad_() for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = feature_l1_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(feature_l1_loss(student.double(), teacher.double()).item(), rel=1e-5)


@pytest.mark.parametrize("width", [8, 4, 12])
def test_term_sums_over_levels_and_takes_any_width(tiny_detector: Any, width: int) -> None:
    torch.manual_seed(0)
    student, teacher, term = tiny_detector(width=width), tiny_detector(), FeatureL1(levels=["c2", "c3"])
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64)
    step = Step(images, [], teacher, teacher(images), student, student(images))
    values = term(step)
    assert list(values) == ["feature_l1"]
    pairs = term.connectors(step)
    torch.testing.assert_close(values["feature_l1"], torch.stack([feature_l1_loss(s, t) for s, t in pairs.values()]).sum())
    assert list(pairs) == ["c2", "c3"]
    with torch.autocast("cpu", torch.bfloat16):
        low = term(Step(images, None, teacher, teacher(images), student, student(images)))["feature_l1"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(values["feature_l1"].item(), rel=0.1, abs=1e-3)
    values["feature_l1"].backward()
    assert all(p.grad is not None for p in term.parameters())
    assert all(p.grad is None for p in teacher.parameters())
