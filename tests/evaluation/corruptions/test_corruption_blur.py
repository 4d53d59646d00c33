from __future__ import annotations

import math

import numpy as np
import pytest

from detkd.evaluation.corruptions import corrupt
from detkd.evaluation.corruptions.blur import _scatter, defocus_blur, motion_blur, zoom_blur

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def pass_by_pass(height: int, width: int, reach: int, seed: int) -> np.ndarray:
    """The published loop over pixels from the last to the first, on positions."""
    rows, columns = range(reach + 1, height - reach + 1), range(reach + 1, width - reach + 1)
    steps = np.random.default_rng(seed).integers(-reach, reach, (2, len(rows), len(columns)), dtype=np.int8)
    x = np.arange(height * width).reshape(height, width)
    for h in reversed(rows):
        for w in reversed(columns):
            dy, dx = steps[:, h - rows[0], w - columns[0]]
            x[h, w] = x[h + dy, w + dx]
    return x.ravel()


@pytest.mark.parametrize("reach", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(25, 31), (9, 40), (12, 12)])
def test_all_pixels_together_give_what_the_loop_gives(reach: int, size: tuple[int, int]) -> None:
    for seed in range(5):
        np.testing.assert_array_equal(_scatter(*size, reach, np.random.default_rng(seed)), pass_by_pass(*size, reach, seed))


def test_an_image_without_an_inside_is_smoothed_alone() -> None:
    np.testing.assert_array_equal(_scatter(6, 50, 3, np.random.default_rng(0)), np.arange(300))


def test_a_point_becomes_a_disk() -> None:
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    lit = np.argwhere(defocus_blur(image, 1, np.random.default_rng(0))[..., 0] > 4) - 20
    assert len(lit) == 29  # whole pixels within radius 3
    assert (np.hypot(*lit.T) <= 3).all()


@pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 10, 3), (5, 20, 15)])
def test_motion_blur_is_a_weighted_sum_of_shifted_images(severity: int, radius: int, sigma: float) -> None:
    angle = math.radians(np.random.default_rng(4).uniform(-45, 45))
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    rows, columns = np.mgrid[: IMAGE.shape[0], : IMAGE.shape[1]]
    expected = np.zeros(IMAGE.shape)
    for i, weight in enumerate(weights):
        y = (rows + math.ceil(i * math.sin(angle) - 0.5)).clip(0, IMAGE.shape[0] - 1)
        x = (columns + math.ceil(i * math.cos(angle) - 0.5)).clip(0, IMAGE.shape[1] - 1)
        expected += weight / sum(weights) * IMAGE[y, x]
    assert np.abs(motion_blur(IMAGE, severity, np.random.default_rng(4)) - expected).max() < 0.51


def enlarge(values: np.ndarray, factor: float, axis: int) -> np.ndarray:
    """Bilinear on one axis, about the centre, in float64."""
    side = values.shape[axis]
    places = (np.arange(side) + 0.5 - side / 2) / factor + side / 2 - 0.5
    low = np.floor(places).astype(int)
    part = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return (1 - part) * values.take(low.clip(0), axis) + part * values.take((low + 1).clip(0, side - 1), axis)


@pytest.mark.parametrize(("severity", "factors"), [(1, np.arange(1, 1.11, 0.01)), (3, np.arange(1, 1.21, 0.02))])
def test_zoom_blur_is_the_mean_of_enlargements(severity: int, factors: np.ndarray) -> None:
    layers = [IMAGE, *(enlarge(enlarge(IMAGE.astype(float), factor, 0), factor, 1) for factor in factors)]
    assert np.abs(zoom_blur(IMAGE, severity, np.random.default_rng(0)) - np.mean(layers, 0)).max() < 1.1


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_blur_keeps_a_constant_and_the_mean(name: str) -> None:
    constant = np.full((50, 60, 3), (10, 130, 255), np.uint8)
    np.testing.assert_array_equal(corrupt(constant, name, 5), constant)
    assert corrupt(IMAGE, name, 3).mean() == pytest.approx(IMAGE.mean(), abs=3)
