from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses import chunks
from detkd.losses.chunks import check_per, rescaled_mean


def maps(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(x: Tensor, y: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Sum of x^2 y."""
    return (x.square() * y).sum(), 2 * x * y if wanted else None


def plain(student: Tensor, teacher: Tensor, per: str) -> Tensor:
    """The same by torch's own gradient."""
    dims = {"level": (0, 1, 2, 3), "sample": (1, 2, 3), "channel": (2, 3)}[per]

    def rescaled(m: Tensor) -> Tensor:
        low, high = m.amin(dims, keepdim=True), m.amax(dims, keepdim=True)
        return (m - low) / (high - low)

    return (rescaled(student).square() * rescaled(teacher.detach())).mean()


@pytest.mark.parametrize("per", ["level", "sample", "channel"])
@pytest.mark.parametrize("chunk", [1, 40, 1000])
def test_value_and_gradient_are_those_of_the_whole_whatever_the_chunks(per: Any, chunk: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(chunks, "CPU_CHUNK", chunk)
    student, teacher = maps((2, 3, 4, 5), 0).requires_grad_(), maps((2, 3, 4, 5), 1)
    found, expected = rescaled_mean(product, student, teacher, per), plain(student, teacher, per)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * found, student), torch.autograd.grad(3 * expected, student))
    assert torch.autograd.gradcheck(lambda s: rescaled_mean(product, s, teacher, per), student)


@pytest.mark.parametrize(("planes", "most", "chunk"), [(10, 4, 4), (9, 4, 3), (3, 100, 3), (5, 0, 1)])
def test_chunks_are_of_nearly_one_size(planes: int, most: int, chunk: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(chunks, "CPU_CHUNK", 6 * most)
    assert chunks.chunk_planes(torch.zeros(planes, 2, 3)) == chunk


def test_no_gradient_is_asked_for_where_none_is_wanted() -> None:
    asked: list[bool] = []

    def loss(x: Tensor, y: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        asked.append(wanted)
        return product(x, y, wanted)

    student, teacher = maps((1, 2, 3, 3), 0), maps((1, 2, 3, 3), 1)
    rescaled_mean(loss, student, teacher, "sample")
    with torch.no_grad():
        rescaled_mean(loss, student.clone().requires_grad_(), teacher, "sample")
    rescaled_mean(loss, student.clone().requires_grad_(), teacher, "sample")
    assert asked == [False, False, True]


def test_a_flat_part_becomes_zeros_without_a_gradient() -> None:
    student = torch.full((1, 2, 3, 3), 4.0).requires_grad_()
    loss = rescaled_mean(product, student, torch.rand(1, 2, 3, 3), "sample")
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert not gradient.any()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="expected maps of one shape"):
        rescaled_mean(product, torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 4), "sample")


def test_unknown_granularity_is_refused() -> None:
    with pytest.raises(InputError, match=r"loss.ssim.per: expected one of level, sample, channel, got 'image'"):
        check_per("ssim", "image")
