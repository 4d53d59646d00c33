from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.l1_ms_ssim import L1MSSSIM, rescaled_l1_loss
from detkd.losses.ms_ssim import ms_ssim_loss
from detkd.losses.step import Step


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 2, 1, 7)])
@pytest.mark.parametrize(("per", "axes"), [("level", (0, 1, 2, 3)), ("sample", (1, 2, 3)), ("channel", (2, 3))])
def test_l1_of_rescaled_maps_equals_the_formula_in_float64(shape: Any, per: Any, axes: Any) -> None:
    student, teacher = maps(shape, 0), maps(shape, 1)
    x, y = (
        (m - m.min(axes, keepdims=True)) / (m.max(axes, keepdims=True) - m.min(axes, keepdims=True))
        for m in (student.numpy(), teacher.numpy())
    )
    assert rescaled_l1_loss(student, teacher, per).item() == pytest.approx(np.abs(x - y).mean(), rel=1e-10)


def test_gradient_in_double_reaches_the_student_alone() -> None:
    student, teacher = maps((2, 2, 5, 4), 0).requires_grad_(), maps((2, 2, 5, 4), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: rescaled_l1_loss(s, teacher), student)
    rescaled_l1_loss(student, teacher).backward()
    assert teacher.grad is None


def test_zero_when_equal() -> None:
    assert rescaled_l1_loss(maps((2, 3, 4, 4), 0), maps((2, 3, 4, 4), 0)) == 0


@pytest.mark.parametrize("options", [{"share": 1.1}, {"per": "image"}, {"sizes": [2]}])
def test_options_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(InputError, match=r"loss\.l1_ms_ssim"):
        L1MSSSIM(**options)


@pytest.mark.parametrize("share", [0.85, 0.0, 1.0])
def test_parts_have_their_shares_and_one_connector(tiny_detector: Any, share: float) -> None:
    torch.manual_seed(0)
    student, teacher, term = tiny_detector(width=4), tiny_detector(), L1MSSSIM(share, sizes=[3, 5])
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64)
    step = Step(images, [], teacher, teacher(images), student, student(images))
    values = term(step)
    ((s, t),) = term.connectors(step).values()
    torch.testing.assert_close(values["l1"], (1 - share) * rescaled_l1_loss(s, t))
    torch.testing.assert_close(values["ms_ssim"], share * ms_ssim_loss(s, t, sizes=[3, 5]))
    assert len(list(term.parameters())) == 2
    with torch.autocast("cpu", torch.bfloat16):
        low = term(step)
    assert all(v.dtype == torch.float32 for v in low.values())
    torch.testing.assert_close(low, values, rtol=0.1, atol=0.01)
