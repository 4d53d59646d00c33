from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.decoupled import DecoupledImitation, decoupled_l2

SHAPES = {"one": [(1, 1, 2, 3)], "two": [(2, 3, 5, 4), (2, 5, 2, 2)], "wide": [(3, 8, 1, 9), (3, 8, 7, 7), (3, 8, 1, 1)]}


def data(name: str, dtype: torch.dtype = torch.float64, share: float = 0.4) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(0)
    students = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in SHAPES[name]]
    teachers = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in SHAPES[name]]
    masks = [torch.rand(s[0], *s[2:], generator=g) < share for s in SHAPES[name]]
    return students, teachers, masks


def reference(students: list[Tensor], teachers: list[Tensor], masks: list[Tensor], decoupled: bool) -> tuple[float, float]:
    """By loops over levels, images, channels and cells, in float64."""
    totals = [0.0, 0.0]
    for s, t, m in zip(students, teachers, masks):
        a, b, mask = s.double().numpy(), t.double().numpy(), m.numpy()
        sums, counts = [0.0, 0.0], [0, 0]
        for index in np.ndindex(*a.shape):
            region = 0 if mask[index[0], index[2], index[3]] else 1
            sums[region] += (a[index] - b[index]) ** 2
            counts[region] += 1
        for region in range(2):
            count = counts[region] if decoupled else sum(counts)
            totals[region] += sums[region] / (2 * count) / len(students) if count else 0.0
    return totals[0], totals[1]


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_formula_in_float64(name: str, decoupled: bool) -> None:
    found = decoupled_l2(*data(name), decoupled)
    assert [v.item() for v in found] == pytest.approx(reference(*data(name), decoupled), rel=1e-6)
    assert found[0].dtype == torch.float64


def test_known_value() -> None:
    mask = torch.tensor([[[True, False, False]]])
    found = decoupled_l2([torch.tensor([[[[3.0, 2.0, 0.0]]]])], [torch.zeros(1, 1, 1, 3)], [mask])
    assert [v.item() for v in found] == [9 / 2, 4 / 2 / 2]
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_region_without_a_cell_counts_nothing(share: float) -> None:
    students, teachers, masks = data("two", share=share)
    students = [s.requires_grad_() for s in students]
    found = decoupled_l2(students, teachers, masks)
    assert found[0 if share == 0 else 1] == 0
    assert found[1 if share == 0 else 0] > 0
    (found[0] + found[1]).backward()
    assert all(s.grad is not None and torch.isfinite(s.grad).all() for s in students)


def test_undivided_parts_add_up_to_half_the_mean_square() -> None:
    students, teachers, masks = data("two")
    together = sum(decoupled_l2(students, teachers, masks, decoupled=False))
    plain = sum((s - t).square().mean() / 2 for s, t in zip(students, teachers)) / 2
    torch.testing.assert_close(together, plain)


def test_gradient() -> None:
    students, teachers, masks = data("two")
    students = [s.requires_grad_() for s in students]
    assert torch.autograd.gradcheck(lambda *s: decoupled_l2(s, teachers, masks), tuple(students))
    teachers = [t.requires_grad_() for t in teachers]
    sum(decoupled_l2(students, teachers, masks)).backward()  # type: ignore[union-attr]
    assert all(t.grad is None for t in teachers)


def test_zero_when_equal() -> None:
    students, _, masks = data("two")
    assert [v.item() for v in decoupled_l2(students, students, masks)] == [0, 0]


def test_float32_inside_autocast() -> None:
    students, teachers, masks = data("two", torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoupled_l2(students, teachers, masks)
    assert found[0].dtype == torch.float32
    assert [v.item() for v in found] == pytest.approx(reference(students, teachers, masks, True), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "side", "message"),
    [
        ((-1.0, 1.0), 56.0, r"loss.x: expected object_weight and background_weight >= 0"),
        ((0.0, 0.0), 56.0, "one of them positive, got 0.0 and 0.0"),
        ((1.0, 1.0), 0.0, "loss.x.box_side: expected a positive number of pixels, got 0.0"),
    ],
)
def test_bad_options(weights: tuple[float, float], side: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecoupledImitation(*weights, True, 0.3, side, None, "x")
