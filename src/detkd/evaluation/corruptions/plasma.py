"""Cloud-like noise: the plasma fractal."""

from __future__ import annotations

import numpy as np

from detkd.evaluation.corruptions.pixels import Floats


def plasma(height: int, width: int, decay: float, rng: np.random.Generator) -> Floats:
    """Draw a plasma fractal by the diamond-square algorithm (Fournier, Fussell and Carpenter, 1982).

    Args:
        decay: the amplitude of the noise is divided by its square at each halving of the step: the larger, the smoother.

    Returns:
        (height, width): a corner of a square map that goes on at its opposite side, whose values span [0, 1].

    Each point between others is the mean of its four neighbours and noise, uniform in +-amplitude: first the centres of squares, then
    the middles of their sides, which lie between two corners and two centres.
    """
    grid = np.zeros((1, 1), np.float32)
    amplitude = 1.0
    while len(grid) < max(height, width, 2):
        below, right = np.roll(grid, -1, 0), np.roll(grid, -1, 1)
        side = len(grid)
        noise = rng.random((3, side, side), dtype=np.float32)
        noise *= np.float32(2 * amplitude)
        noise -= np.float32(amplitude)
        centre = (grid + below + right + np.roll(below, -1, 1)) / 4 + noise[0]
        finer = np.empty((2 * side, 2 * side), np.float32)
        finer[::2, ::2] = grid
        finer[1::2, 1::2] = centre
        finer[::2, 1::2] = (grid + right + centre + np.roll(centre, 1, 0)) / 4 + noise[1]
        finer[1::2, ::2] = (grid + below + centre + np.roll(centre, 1, 1)) / 4 + noise[2]
        grid = finer
        amplitude /= decay**2
    lowest = grid.min()
    return (grid[:height, :width] - lowest) / (grid.max() - lowest)
