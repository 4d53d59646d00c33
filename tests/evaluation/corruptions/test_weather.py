from __future__ import annotations

import colorsys

import numpy as np
import pytest

from detkd.evaluation.corruptions.ice import ice
from detkd.evaluation.corruptions.plasma import plasma
from detkd.evaluation.corruptions.weather import brightness, fog, frost, snow

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("severity", "added"), [(1, 0.1), (4, 0.4)])
def test_brightness_adds_to_the_value_of_hsv(severity: int, added: float) -> None:
    image = IMAGE.copy()
    image[0, :4] = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (7, 7, 7)]
    expected = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))) * 255
    assert np.abs(brightness(image, severity, rng()) - expected).max() < 0.51


@pytest.mark.parametrize(("severity", "thickness", "decay"), [(1, 1.5, 2.0), (5, 3.0, 1.4)])
def test_fog_adds_a_plasma_and_keeps_the_brightest_value(severity: int, thickness: float, decay: float) -> None:
    image = (IMAGE * 0.6).astype(np.uint8)
    brightest = image.max() / 255
    cloud = plasma(20, 24, decay, rng()).astype(float)[..., None]
    expected = (image / 255 + thickness * cloud) * brightest / (brightest + thickness) * 255
    assert np.abs(fog(image, severity, rng()) - expected).max() < 0.51
    assert fog(image, severity, rng()).max() <= image.max()


@pytest.mark.parametrize(("severity", "kept", "added"), [(1, 1.0, 0.4), (5, 0.6, 0.75)])
def test_frost_is_ice_over_a_darker_image(severity: int, kept: float, added: float) -> None:
    expected = (kept * IMAGE.astype(float) + added * ice(20, 24, rng()).astype(float)).clip(0, 255)
    assert np.abs(frost(IMAGE, severity, rng()) - expected).max() < 0.51


def test_snow_whitens_and_falls_on_both_sides_alike() -> None:
    black, white = np.zeros((96, 128, 3), np.uint8), np.full((96, 128, 3), 255, np.uint8)
    np.testing.assert_array_equal(snow(white, 5, rng()), 255)
    for severity, kept in ((1, 0.8), (5, 0.55)):
        flakes = snow(black, severity, rng())
        assert flakes.min() == round((1 - kept) * 127.5)  # what black is whitened to
        np.testing.assert_array_equal(flakes, flakes[::-1, ::-1])
        assert flakes.mean() > 1.2 * flakes.min()
        assert flakes.max() > 100


def test_flakes_fall_along_the_rows_more_than_across() -> None:
    flakes = snow(np.zeros((256, 256, 3), np.uint8), 4, np.random.default_rng(2))[..., 0].astype(float)
    assert np.abs(np.diff(flakes, axis=0)).mean() < np.abs(np.diff(flakes, axis=1)).mean()
