from __future__ import annotations

import numpy as np
import pytest

from detkd.evaluation.corruptions.ice import MEAN_RANGE, STD_RANGE, ice


def test_brightness_and_contrast_are_those_of_photographs_of_frost() -> None:
    means = []
    for seed in range(6):
        pane = ice(240, 320, np.random.default_rng(seed))
        grey = pane.mean(2)
        means.append(float(grey.mean()))
        assert MEAN_RANGE[0] - 1 < grey.mean() < MEAN_RANGE[1] + 1
        assert STD_RANGE[1] - 1 < grey.std() < STD_RANGE[0] + 1
        assert (pane[..., 2] > pane[..., 0]).mean() > 0.95  # bluish
        within = grey.reshape(30, 8, 40, 8).std((1, 3)).mean() / grey.std()
        assert 0.35 < within < 0.7  # the six photographs: 0.41 to 0.66
    assert max(means) - min(means) > 20


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (7, 900), (1400, 60)])
def test_any_size(size: tuple[int, int]) -> None:
    pane = ice(*size, np.random.default_rng(0))
    assert pane.shape == (*size, 3)
    assert pane.dtype == np.float32
    assert np.isfinite(pane).all()


def test_needles_grow_with_a_large_image() -> None:
    def roughness(side: int) -> float:
        grey = ice(side, side, np.random.default_rng(0)).mean(2)
        return float(np.abs(np.diff(grey)).mean() / grey.std())

    assert roughness(1280) < 0.7 * roughness(400)
