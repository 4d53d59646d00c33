from __future__ import annotations

import numpy as np
import pytest

from detkd.evaluation.corruptions.ice import ice


def test_each_pane_looks_like_one_of_the_photographs_and_each_of_them_is_drawn() -> None:
    seen = set()
    for seed in range(24):
        pane = ice(120, 160, np.random.default_rng(seed))
        grey = pane.mean(2)
        seen.add((round(float(grey.mean())), round(float(grey.std()))))
        assert (pane[..., 2] > pane[..., 0]).mean() > 0.95  # bluish
        within = grey.reshape(15, 8, 20, 8).std((1, 3)).mean() / grey.std()
        assert 0.35 < within < 0.75  # the photographs: 0.41 to 0.66
    assert seen == {(131, 43), (207, 23), (152, 31), (124, 44)}


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
