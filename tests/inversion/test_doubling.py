from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from detkd.inversion.doubling import doubled

SIDES = st.integers(1, 9)


@given(height=SIDES, width=SIDES, seed=st.integers(0, 10))
def test_equals_interpolate_there_and_back(height: int, width: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, height, width, generator=draws, dtype=torch.float64).requires_grad_()
    ours = doubled(images)
    reference = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, reference)
    upstream = torch.randn(ours.shape, generator=draws, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(ours, images, upstream), torch.autograd.grad(reference, images, upstream))


def test_known_values() -> None:
    assert doubled(torch.tensor([[[[0.0, 4.0]]]]))[0, 0, 0].tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_format(layout: torch.memory_format) -> None:
    images = torch.rand(2, 3, 4, 6).contiguous(memory_format=layout)
    torch.testing.assert_close(doubled(images), F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False))
