from __future__ import annotations

import numpy as np
import pytest

from detkd.evaluation.corruptions.filters import Border, correlate, disk, gaussian_blur, streak

RNG = np.random.default_rng(0)


def reference(values: np.ndarray, kernel: np.ndarray, border: Border) -> np.ndarray:
    """The sum under the kernel, pixel by pixel, in float64."""
    top, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(values.astype(float), [(top, top), (left, left)], mode=border)
    result = np.zeros(values.shape)
    for y, x in np.ndindex(values.shape):
        result[y, x] = (padded[y : y + kernel.shape[0], x : x + kernel.shape[1]] * kernel).sum()
    return result


@pytest.mark.parametrize("border", ["edge", "reflect", "symmetric"])
@pytest.mark.parametrize("size", [(9, 14), (3, 5), (1, 6)])
def test_correlate_is_the_sum_under_the_kernel(size: tuple[int, int], border: Border) -> None:
    values = RNG.uniform(0, 255, (*size, 3)).astype(np.float32)
    kernel = RNG.uniform(-1, 1, (5, 3)).astype(np.float32)
    expected = np.stack([reference(values[..., c], kernel, border) for c in range(3)], -1)
    np.testing.assert_allclose(correlate(values, kernel, border), expected, atol=1e-3)
    np.testing.assert_allclose(correlate(values[..., 0], kernel, border), expected[..., 0], atol=1e-3)


@pytest.mark.parametrize("border", ["edge", "reflect", "symmetric"])
def test_gaussian_blur_is_a_gaussian_of_two_widths_cut_off(border: Border) -> None:
    values = RNG.uniform(0, 255, (11, 13)).astype(np.float32)
    sigma, truncate = (1.1, 0.7), 3.0
    sides = [np.exp(-0.5 * (np.arange(-r, r + 1) / s) ** 2) for s, r in ((1.1, 3), (0.7, 2))]
    kernel = np.outer(*sides)
    expected = reference(values, kernel / kernel.sum(), border)
    np.testing.assert_allclose(gaussian_blur(values, sigma, truncate, border), expected, atol=1e-3)


def test_a_constant_stays_one() -> None:
    values = np.full((7, 9, 3), 200, np.float32)
    np.testing.assert_allclose(correlate(values, disk(6, 0.5), "reflect"), 200, atol=1e-3)
    np.testing.assert_allclose(gaussian_blur(values, (2, 3), 4, "edge"), 200, rtol=1e-6)


@pytest.mark.parametrize(("radius", "sigma", "side"), [(3, 0.1, 9), (8, 0.5, 19), (10, 0.5, 25)])
def test_a_disk_is_round_and_sums_to_1(radius: int, sigma: float, side: int) -> None:
    kernel = disk(radius, sigma)
    assert kernel.shape == (side, side)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-8)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-8)
    inside = (kernel > kernel.max() / 2).sum()
    assert inside == pytest.approx(np.pi * radius**2, rel=0.06)


@pytest.mark.parametrize(("degrees", "ends"), [(0, (0, 4)), (90, (4, 0)), (-90, (-4, 0)), (-45, (-3, 3)), (-135, (-3, -3))])
def test_a_streak_goes_from_the_centre_in_one_direction(degrees: float, ends: tuple[int, int]) -> None:
    kernel = streak(5, 2.0, degrees)
    assert kernel.shape == (9, 9)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert np.unravel_index(kernel.argmax(), kernel.shape)[0] in (3, 4, 5)
    assert kernel[4 + ends[0], 4 + ends[1]] > 0
    assert kernel[4 - ends[0], 4 - ends[1]] == 0
    if degrees == 0:
        weights = np.exp(-0.5 * (np.arange(5) / 2.0) ** 2)
        np.testing.assert_allclose(kernel[4, 4:], weights / weights.sum(), rtol=1e-6)
