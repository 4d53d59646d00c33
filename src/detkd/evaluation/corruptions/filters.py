"""Filters of corruptions: Gaussian, disk, streak. All in numpy, so that their results do not depend on how many threads there are."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from detkd.evaluation.corruptions.pixels import Floats

Border = Literal["edge", "reflect", "symmetric"]


def gaussian_blur(values: Floats, sigma: tuple[float, float], truncate: float, border: Border) -> Floats:
    """Smooth (H, W) or (H, W, C) by a Gaussian.

    Args:
        sigma: of the rows' and the columns' axis, in pixels.
        truncate: the kernel ends this many sigma from its centre, rounded to whole pixels.
        border: what lies outside, a mode of ``numpy.pad``.
    """
    for axis in (0, 1):
        radius = int(truncate * sigma[axis] + 0.5)
        weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma[axis]) ** 2)
        weights /= weights[0] + 2 * weights[1:].sum()
        values = _smooth(values, axis, weights.astype(np.float32), border)
    return values


def _smooth(values: Floats, axis: int, weights: Floats, border: Border) -> Floats:
    radius, length = len(weights) - 1, values.shape[axis]
    padded = np.pad(values, [(radius, radius) if a == axis else (0, 0) for a in range(values.ndim)], mode=border)

    def shifted(by: int) -> Floats:
        return padded[(slice(None),) * axis + (slice(radius + by, radius + by + length),)]

    total = shifted(0) * weights[0]
    pair = np.empty_like(total)
    for distance in range(1, radius + 1):
        np.add(shifted(-distance), shifted(distance), out=pair)
        pair *= weights[distance]
        total += pair
    return total


def disk(radius: int, sigma: float) -> Floats:
    """A disk of ones, (k, k) and summing to 1, its edge smoothed by a Gaussian of 3x3 taps (5x5 above radius 8)."""
    reach = 1 if radius <= 8 else 2
    side = np.arange(-radius - reach, radius + reach + 1)
    kernel = ((side[:, None] ** 2 + side[None] ** 2) <= radius**2).astype(np.float32)
    return gaussian_blur(kernel / kernel.sum(), (sigma, sigma), reach / sigma, "edge")


def streak(length: int, sigma: float, degrees: float) -> Floats:
    """Half a Gaussian along a line of pixels from the centre outwards: the path of a moving camera.

    Args:
        length: pixels on the line. sigma: in pixels. degrees: from the columns' axis (to the right) towards the rows' (downwards).

    Returns:
        (k, k) summing to 1, k = 2 * length - 1.
    """
    along = np.arange(length)
    weights = np.exp(-0.5 * (along / sigma) ** 2)
    radians = math.radians(degrees)
    rows, columns = (np.ceil(along * part - 0.5).astype(int) for part in (math.sin(radians), math.cos(radians)))
    kernel = np.zeros((2 * length - 1, 2 * length - 1))
    np.add.at(kernel, (length - 1 + rows, length - 1 + columns), weights / weights.sum())
    return kernel.astype(np.float32)


def correlate(values: Floats, kernel: Floats, border: Border) -> Floats:
    """Sum of the kernel times what lies under it, at each pixel, by Fourier transform.

    Args:
        values: (H, W) or (H, W, C). kernel: (h, w), odd sides. border: what lies outside, a mode of ``numpy.pad``.
    """
    occupied = np.argwhere(kernel)
    reach = int(np.abs(occupied - np.array(kernel.shape) // 2).max())  # a short streak may stand in a wide kernel
    middle_y, middle_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    top, left = min(reach, middle_y), min(reach, middle_x)
    kernel = kernel[middle_y - top : middle_y + top + 1, middle_x - left : middle_x + left + 1]
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)  # (C, H, W)
    height, width = planes.shape[1:]
    padded = np.pad(planes, [(0, 0), (top, top), (left, left)], mode=border)
    size = _fast_length(padded.shape[1]), _fast_length(padded.shape[2])
    spectrum = np.fft.rfft2(padded, size)
    spectrum *= np.fft.rfft2(kernel[::-1, ::-1], size)
    # what wraps around falls on the rows and columns that are cut off
    result = np.fft.irfft2(spectrum, size)[:, 2 * top : 2 * top + height, 2 * left : 2 * left + width].astype(np.float32)
    return result[0] if values.ndim == 2 else np.ascontiguousarray(np.moveaxis(result, 0, 2))


def _fast_length(at_least: int) -> int:
    """The next even number without a prime factor above 5."""
    length = at_least + at_least % 2
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2
