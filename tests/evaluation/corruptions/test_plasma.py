from __future__ import annotations

import numpy as np
import pytest

from detkd.evaluation.corruptions.plasma import plasma


def reference(side: int, decay: float, seed: int) -> np.ndarray:
    """Diamond-square on one array, point by point, in float64."""
    rng = np.random.default_rng(seed)
    grid, step, amplitude = np.zeros((side, side)), side, 1.0
    while step > 1:
        count, half = side // step, step // 2
        noise = (2 * rng.random((3, count, count), dtype=np.float32).astype(float) - 1) * amplitude

        def at(y: int, x: int) -> float:
            return float(grid[y % side, x % side])

        cells = [(i, j, i * step, j * step) for i in range(count) for j in range(count)]
        for i, j, y, x in cells:
            corners = at(y, x) + at(y + step, x) + at(y, x + step) + at(y + step, x + step)
            grid[y + half, x + half] = corners / 4 + noise[0, i, j]
        for i, j, y, x in cells:
            across = at(y, x) + at(y, x + step) + at(y + half, x + half) + at(y - half, x + half)
            along = at(y, x) + at(y + step, x) + at(y + half, x + half) + at(y + half, x - half)
            grid[y, x + half] = across / 4 + noise[1, i, j]
            grid[y + half, x] = along / 4 + noise[2, i, j]
        step, amplitude = half, amplitude / decay**2
    return (grid - grid.min()) / (grid.max() - grid.min())


@pytest.mark.parametrize("side", [2, 4, 16])
@pytest.mark.parametrize("decay", [1.4, 3.0])
def test_it_is_the_diamond_square_algorithm(side: int, decay: float) -> None:
    np.testing.assert_allclose(plasma(side, side, decay, np.random.default_rng(3)), reference(side, decay, 3), atol=1e-5)


def test_a_part_of_the_square_is_given_and_a_larger_decay_is_smoother() -> None:
    whole = plasma(64, 64, 2.0, np.random.default_rng(0))
    assert (whole.min(), whole.max()) == (0, 1)
    np.testing.assert_array_equal(plasma(40, 64, 2.0, np.random.default_rng(0)), whole[:40])
    rough = plasma(64, 64, 1.4, np.random.default_rng(0))
    assert np.abs(np.diff(rough)).mean() > 1.5 * np.abs(np.diff(whole)).mean()
    assert plasma(1, 1, 2.0, np.random.default_rng(0)).shape == (1, 1)
