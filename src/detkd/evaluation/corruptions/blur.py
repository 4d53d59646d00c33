"""Blur: out of focus, behind frosted glass, by a moving camera, by a zooming one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detkd.evaluation.corruptions.filters import correlate, disk, gaussian_blur, streak
from detkd.evaluation.corruptions.pixels import Pixels, to_uint8


def defocus_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Spread each pixel over a disk of 3 to 10 pixels' radius."""
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return to_uint8(correlate(image.astype(np.float32), disk(radius, sigma), "reflect"))


def glass_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Smooth, move pixels about by up to 1 to 4 pixels, 1 to 3 times, and smooth again."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    smooth = to_uint8(gaussian_blur(image.astype(np.float32), (sigma, sigma), 4, "edge"))
    height, width = image.shape[:2]
    source = np.arange(height * width, dtype=np.int32)
    for _ in range(times):
        source = source[_scatter(height, width, reach, rng)]
    moved = smooth.reshape(-1, 3)[source].reshape(image.shape)
    return to_uint8(gaussian_blur(moved.astype(np.float32), (sigma, sigma), 4, "edge"))


def _scatter(height: int, width: int, reach: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Where each pixel's value comes from after one pass, (height * width,) int32 positions in rows.

    The pass goes from the last pixel to the first, leaves out a border, and gives each pixel the value that another has at that
    time, ``reach`` before it to ``reach - 1`` behind it on both axes. What lies behind has had its turn already: such chains are
    followed to the first pixel that has not. So this is the pass itself, without its order.
    """
    positions = np.arange(height * width, dtype=np.int32)
    origin = positions.copy()
    rows, columns = (np.arange(reach + 1, side - reach + 1) for side in (height, width))
    if not (len(rows) and len(columns)):
        return origin
    steps = rng.integers(-reach, reach, (2, len(rows), len(columns)), dtype=np.int8).astype(np.int32)
    inside = (rows[:, None] * width + columns[None]).astype(np.int32)
    origin[inside] = inside + steps[0] * width + steps[1]
    had_turn = np.zeros(height * width, dtype=bool)
    had_turn[inside] = True
    waiting = (origin > positions) & had_turn[origin]  # for the value that the position they look at gets
    late = positions[waiting]
    while len(late):
        ready = ~waiting[origin[late]]
        known, late = late[ready], late[~ready]
        origin[known] = origin[origin[known]]
        waiting[known] = False
    return origin


def motion_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Spread each pixel along a line of 21 to 41 pixels within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    kernel = streak(2 * radius + 1, sigma, rng.uniform(-45, 45))
    return to_uint8(correlate(image.astype(np.float32), kernel, "edge"))


def zoom_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Average the image and its enlargements about the centre, by up to 1.11 to 1.30."""
    count, step = ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))[severity - 1]
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    total = 2 * image.astype(np.uint16)  # the image, and the first of its enlargements, by 1
    for number in range(1, count):
        margin = (1 - 1 / (1 + number * step)) / 2
        box = (width * margin, height * margin, width * (1 - margin), height * (1 - margin))
        total += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return ((total + (count + 1) // 2) // (count + 1)).astype(np.uint8)
