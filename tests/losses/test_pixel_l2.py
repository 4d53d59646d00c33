from __future__ import annotations

import pytest
import torch

from detkd.losses.pixel_l2 import PixelL2, pixel_l2
from detkd.losses.step import Step


def test_mean_square_by_hand() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert pixel_l2(images).item() == pytest.approx((0 + 0.25 + 1) / 3)


def test_gradient_is_two_x_over_n() -> None:
    images = torch.rand(2, 3, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(3.5 * pixel_l2(images), images)
    torch.testing.assert_close(gradient, 3.5 * 2 * images.detach() / images.numel())


def test_millions_of_values_are_added_without_losing_any() -> None:
    images = torch.full((8, 3, 640, 640), 0.9)
    assert pixel_l2(images).item() == pytest.approx(images[0, 0, 0, 0].double().item() ** 2, rel=1e-6)


def test_does_not_depend_on_resolution_and_counts_in_float32() -> None:
    small = torch.rand(2, 3, 4, 4, dtype=torch.bfloat16)
    assert pixel_l2(small).dtype == torch.float32
    assert pixel_l2(small.repeat(1, 1, 3, 2)).item() == pytest.approx(pixel_l2(small).item(), rel=1e-6)


def test_the_term_looks_at_clean_images() -> None:
    augmented, clean = torch.rand(2, 2, 3, 4, 4)
    assert PixelL2()(Step(augmented, clean_images=clean)) == {"pixel_l2": pixel_l2(clean)}
    assert PixelL2()(Step(augmented)) == {"pixel_l2": pixel_l2(augmented)}
