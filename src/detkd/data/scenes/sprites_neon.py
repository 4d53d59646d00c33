"""The classes of the out-of-domain world: bare figures of glowing line on a dark ground."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from detkd.data.scenes import shapes
from detkd.data.scenes.dice import Array, Dice
from detkd.data.scenes.ink import WHITE, Ink, Kind, hsv, mix
from detkd.data.scenes.shapes import Point

_PEN = 0.075
_SPIRAL = tuple(
    (0.92 * t * math.cos(2.25 * math.tau * t), 0.92 * t * math.sin(2.25 * math.tau * t)) for t in np.linspace(0.08, 1, 20)
)
_WAVE = tuple((x, 0.42 * math.sin(2 * math.pi * x)) for x in np.linspace(-0.92, 0.92, 17).tolist())
_CROSS: tuple[Point, ...] = tuple(
    (x * 0.92, y * 0.92)
    for x, y in (
        (-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34),
        (0.34, 1), (-0.34, 1), (-0.34, 0.34), (-1, 0.34), (-1, -0.34), (-0.34, -0.34), (-0.34, -1),
    )
)  # fmt: skip


def _tube(ink: Ink, dice: Dice, line: Array) -> Array:
    """Colour a line as a lit tube, white in the middle; return the silhouette of the tube."""
    # a tube is never thinner than about 1.4 pixels, else small figures would fade
    pen = max(_PEN, 0.7 * ink.pixel)
    colour = hsv(dice.uniform(), dice.uniform(0.75, 1.0), 1.0)
    ink.wash(colour)
    ink.fill(line - 0.4 * pen, mix(colour, WHITE, 0.7))
    return line - pen


def _path(*points: Point) -> Callable[[Ink, Dice], Array]:
    def draw(ink: Ink, dice: Dice) -> Array:
        return _tube(ink, dice, shapes.path(ink.x, ink.y, points))

    return draw


def _circle(ink: Ink, dice: Dice) -> Array:
    return _tube(ink, dice, np.abs(shapes.circle(ink.x, ink.y, 0, 0, 0.92)))


def _square(ink: Ink, dice: Dice) -> Array:
    return _tube(ink, dice, np.abs(shapes.rounded(ink.x, ink.y, 0, 0, 0.92, 0.92, 0.1)))


NEON = (
    Kind("triangle", _path((0.0, -0.88), (0.92, 0.76), (-0.92, 0.76), (0.0, -0.88)), turn=20),
    Kind("square", _square, turn=15),
    Kind("circle", _circle, turn=20, flat=0.95),
    Kind("cross", _path(*_CROSS), turn=15),
    Kind("lightning", _path((0.25, -0.92), (-0.4, 0.08), (0.35, -0.06), (-0.22, 0.92)), (0.5, 1.0), turn=20),
    Kind("spiral", _path(*_SPIRAL), turn=180),
    Kind("hourglass", _path((-0.6, -0.9), (0.6, -0.9), (-0.6, 0.9), (0.6, 0.9), (-0.6, -0.9)), (0.7, 1.0), turn=15),
    Kind("wave", _path(*_WAVE), (1.0, 0.5), turn=20),
)
