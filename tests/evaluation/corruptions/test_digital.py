from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from detkd.evaluation.corruptions.digital import _warp, contrast, elastic_transform, jpeg_compression, pixelate

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("severity", "kept"), [(1, 0.4), (5, 0.05)])
def test_contrast_keeps_a_part_of_the_difference_to_the_mean(severity: int, kept: float) -> None:
    mean = IMAGE.astype(float).mean((0, 1))
    assert np.abs(contrast(IMAGE, severity, rng()) - (mean + kept * (IMAGE - mean))).max() < 0.51


def test_warp_looks_up_bilinearly_in_a_mirrored_image() -> None:
    draws = np.random.default_rng(1)
    rows, columns = (draws.uniform(-9, 9, (20, 24)).astype(np.float32) for _ in range(2))

    def mirrored(place: int, side: int) -> int:
        place %= 2 * side
        return place if place < side else 2 * side - 1 - place

    expected = np.empty(IMAGE.shape)
    for y, x in np.ndindex(20, 24):
        at_y, at_x = y + float(rows[y, x]), x + float(columns[y, x])
        low_y, low_x = int(np.floor(at_y)), int(np.floor(at_x))
        expected[y, x] = sum(
            (1 - abs(at_y - j)) * (1 - abs(at_x - i)) * IMAGE[mirrored(j, 20), mirrored(i, 24)].astype(float)
            for j in (low_y, low_y + 1)
            for i in (low_x, low_x + 1)
        )
    np.testing.assert_allclose(_warp(IMAGE, rows, columns), expected, atol=1e-2)
    np.testing.assert_array_equal(_warp(IMAGE, np.zeros_like(rows), np.zeros_like(rows)), IMAGE)


def test_elastic_transform_moves_smoothly_and_by_a_few_pixels() -> None:
    y, x = np.mgrid[:200, :250]
    ramp = np.stack([y, x, np.zeros_like(y)], -1).astype(np.uint8)  # a pixel's colour is where it was
    spread = []
    for severity in (1, 5):
        moved = elastic_transform(ramp, severity, rng())[10:-10, 10:-10].astype(float) - ramp[10:-10, 10:-10]
        spread.append(moved[..., 0].std())
        assert np.abs(np.diff(moved[..., 0], axis=0)).mean() < 0.4 * np.abs(moved[..., 0]).mean()
        assert not moved[..., 2].any()
    assert spread[1] / spread[0] == pytest.approx(30 / 12.5, rel=0.1)
    assert 0.5 < spread[0] < spread[1] < 5, spread


@pytest.mark.parametrize(("severity", "blocks"), [(2, 12 * 10), (5, 6 * 5)])
def test_pixelate_leaves_few_large_pixels(severity: int, blocks: int) -> None:
    result = pixelate(IMAGE, severity, rng())
    assert len(np.unique(result.reshape(-1, 3), axis=0)) == blocks
    assert result.mean() == pytest.approx(IMAGE.mean(), abs=1)
    if severity == 5:
        np.testing.assert_allclose(result[:4, :4], IMAGE[:4, :4].mean((0, 1))[None, None].repeat(4, 0).repeat(4, 1), atol=1)


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (5, 7)])
def test_jpeg_of_the_quality_in_the_table(severity: int, quality: int) -> None:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        np.testing.assert_array_equal(jpeg_compression(IMAGE, severity, rng()), np.asarray(image))
