from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.mgd import MGD, generation_block, mgd_loss
from detkd.losses.step import Step


def maps(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def convolved(x: Any, weight: Any, bias: Any) -> Any:
    """A 3x3 convolution with padding 1, by loops, of (B, C, H, W)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(weight), *x.shape[2:]))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            out[:, :, i, j] = np.einsum("bchw,ochw->bo", padded[:, :, i : i + 3, j : j + 3], weight) + bias
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 4), (2, 4, 1, 6)])
def test_equals_the_formula_in_float64(shape: Any) -> None:
    torch.manual_seed(0)
    student, teacher, block = maps(shape, 0), maps(shape, 1), generation_block(shape[1]).double()
    keep = maps((shape[0], 1, *shape[2:]), 2) > 0
    one, _, two = ([p.detach().numpy() for p in layer.parameters()] for layer in block)
    made = convolved(np.maximum(convolved(student.numpy() * keep.numpy(), *one), 0), *two)
    expected = ((made - teacher.numpy()) ** 2).mean()
    assert mgd_loss(student, teacher, keep, block).item() == pytest.approx(expected, rel=1e-10)


def test_gradient_in_double_skips_cells_that_are_left_out() -> None:
    student, teacher, keep = maps((2, 3, 4, 4), 0).requires_grad_(), maps((2, 3, 4, 4), 1), maps((2, 1, 4, 4), 2) > 0
    torch.manual_seed(0)
    block = generation_block(3).double()
    assert torch.autograd.gradcheck(lambda s: mgd_loss(s, teacher, keep, block), student)
    (gradient,) = torch.autograd.grad(mgd_loss(student, teacher, keep, block), student)
    assert torch.equal((gradient == 0).all(1, keepdim=True), ~keep)


@pytest.mark.parametrize("mask", [-0.1, 1.0])
def test_mask_must_be_a_probability_below_one(mask: float) -> None:
    with pytest.raises(InputError, match=r"loss.mgd.mask: .* got"):
        MGD(mask)


@pytest.fixture
def ready(tiny_detector: Any) -> tuple[Any, Step]:
    """A term that is set up, of a narrower student, and a step."""
    torch.manual_seed(0)
    student, teacher, term = tiny_detector(width=4).eval(), tiny_detector().eval(), MGD()
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64)
    return term, Step(images, [], teacher, teacher(images), student, student(images))


def test_connector_and_block_are_trained(ready: Any) -> None:
    term, step = ready
    values = term(step)
    assert list(values) == ["mgd"]
    values["mgd"].backward()
    assert {name.split(".")[0] for name, _ in term.named_parameters()} == {"connectors", "blocks"}
    assert all(p.grad is not None for p in term.parameters())


def test_half_precision_ends_in_float32(ready: Any) -> None:
    term, step = ready
    plain = term.eval()(step)["mgd"]
    with torch.autocast("cpu", torch.bfloat16):
        low = term(step)["mgd"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(plain.item(), rel=0.05)


def test_masks_differ_call_by_call_and_leave_the_global_random_state(ready: Any) -> None:
    term, step = ready
    before = torch.random.get_rng_state()
    first, second = term(step)["mgd"], term(step)["mgd"]
    assert first != second
    assert torch.equal(torch.random.get_rng_state(), before)


def test_masks_leave_out_the_share_that_was_asked_for(ready: Any) -> None:
    term, step = ready
    kept: list[Tensor] = []
    term.blocks[0].register_forward_pre_hook(lambda _, x: kept.append((x[0] != 0).any(1)))
    for _ in range(40):
        term(step)
    assert torch.stack(kept).float().mean().item() == pytest.approx(0.35, abs=0.03)
    assert not torch.equal(kept[0][0], kept[0][1])


def test_a_resumed_run_goes_on_with_the_masks_that_are_next(ready: Any) -> None:
    term, step = ready
    term(step)
    again, state = copy.deepcopy(term), copy.deepcopy(term.state_dict())
    expected = [term(step)["mgd"].item() for _ in range(3)]
    again.calls = 77
    again.load_state_dict(state)
    assert [again(step)["mgd"].item() for _ in range(3)] == expected


def test_in_eval_mode_the_mask_is_always_the_same(ready: Any) -> None:
    term, step = ready
    first = term.eval()(step)["mgd"]
    term.train()(step)
    calls = term.calls
    assert term.eval()(step)["mgd"] == first
    assert term.calls == calls == 1
    singles = [term(step.image(i))["mgd"] for i in range(2)]
    torch.testing.assert_close(torch.stack(singles).mean(), first)


def test_seeds_differ(ready: Any) -> None:
    term, step = ready
    other = copy.deepcopy(term)
    other.seed = 1
    assert term(step)["mgd"] != other(step)["mgd"]
