"""A drawn pane of frost, where the published corruption has photographs."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from detkd.evaluation.corruptions.pixels import Floats
from detkd.evaluation.corruptions.plasma import plasma

DIRECTIONS = 5
CRYSTAL = 48.0  # px, about the size of a patch of needles that lie in one direction
NEEDLES = ((20.0, 1.6), (70.0, 4.0))  # px, length and width
LOOKS = ((131.0, 43.0), (207.0, 23.0), (207.0, 23.0), (152.0, 31.0), (124.0, 44.0))  # mean and std of the photographs in use


def ice(height: int, width: int, rng: np.random.Generator) -> Floats:
    """Draw frost: patches of needles, each patch in one of five directions, on clouds; bluish, as bright as one of the photographs.

    Sizes are in pixels up to a longer side of 640, and grow with the image beyond, as a photograph would be enlarged.

    Returns:
        (height, width, 3) around [0, 255], not clipped.
    """
    unit = max(1.0, max(height, width) / 640)
    patches = [_smooth_noise(height, width, CRYSTAL * unit, rng) for _ in range(DIRECTIONS)]
    patch = np.argmax(patches, axis=0)  # (H, W)
    first = rng.uniform(0, math.pi)
    needles = np.zeros((height, width), np.float32)
    for number in range(DIRECTIONS):
        angle = first + number * math.pi / DIRECTIONS
        drawn = sum(_needles(height, width, angle, long * unit, thin * unit, rng) for long, thin in NEEDLES)
        needles = np.where(patch == number, drawn, needles)
    clouds = plasma(height, width, 1.6, rng)
    pane = _standard(_standard(needles) + 1.2 * _standard(clouds))

    mean, std = LOOKS[rng.integers(len(LOOKS))]
    tint = rng.uniform(0.03, 0.15)
    colour = np.array([1 - tint, 1, 1 + tint], np.float32)
    return (np.float32(mean) + np.float32(std) * pane)[..., None] * colour


def _smooth_noise(height: int, width: int, cell: float, rng: np.random.Generator) -> Floats:
    """Normal noise on a grid of ``cell`` pixels, (height, width), interpolated."""
    grid = rng.standard_normal((math.ceil(height / cell) + 2, math.ceil(width / cell) + 2), dtype=np.float32)
    box = (1, 1, 1 + width / cell, 1 + height / cell)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _needles(height: int, width: int, angle: float, long: float, thin: float, rng: np.random.Generator) -> Floats:
    """Noise on a turned grid of cells ``long`` x ``thin`` pixels, (height, width), interpolated; in 8 bit, around 128."""
    diagonal = math.hypot(height, width)
    rows, columns = math.ceil(diagonal / thin) + 4, math.ceil(diagonal / long) + 4
    grid = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    cos, sin = math.cos(angle), math.sin(angle)
    start_x = columns / 2 - (cos * width + sin * height) / 2 / long
    start_y = rows / 2 - (cos * height - sin * width) / 2 / thin
    turned = (cos / long, sin / long, start_x, -sin / thin, cos / thin, start_y)
    return np.asarray(grid.transform((width, height), Image.Transform.AFFINE, turned, Image.Resampling.BILINEAR), np.float32)


def _standard(values: Floats) -> Floats:
    """Mean 0 and standard deviation 1; zeros where all are alike."""
    return (values - values.mean()) / max(float(values.std()), 1e-6)
