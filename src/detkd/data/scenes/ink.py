"""What a sprite is drawn with: local coordinates, a colour plane and anti-aliased fills."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detkd.data.scenes.dice import Array, Dice

Colour = tuple[float, float, float]

WHITE: Colour = (0.97, 0.97, 0.95)
BLACK: Colour = (0.07, 0.07, 0.08)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in [0, 1] of a hue in turns (any real number), saturation and value in [0, 1]."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` for share 0, ``b`` for share 1."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def column(colour: Colour) -> Array:
    """(3, 1, 1) float32."""
    return np.array(colour, dtype=np.float32).reshape(3, 1, 1)


class Ink:
    """A sprite in the making.

    Args:
        x, y: (h, w) local coordinates of the pixel centres, y down.
        pixel: size of a pixel in local units.
    """

    def __init__(self, x: Array, y: Array, pixel: float) -> None:
        self.x, self.y, self.pixel = x, y, pixel
        self.rgb: Array = np.zeros((3, *x.shape), dtype=np.float32)

    def cover(self, distance: Array) -> Array:
        """(h, w) in [0, 1]: the share of each pixel inside a shape, from its signed distance."""
        return np.clip(0.5 - distance * (1 / self.pixel), 0, 1)

    def wash(self, colour: Colour) -> None:
        """Paint all of it."""
        self.rgb[:] = column(colour)

    def fill(self, distance: Array, colour: Colour, opacity: float = 1.0) -> None:
        """Paint the inside of a shape."""
        share = self.cover(distance)
        if opacity != 1.0:
            share *= np.float32(opacity)
        self.rgb += share * (column(colour) - self.rgb)

    def shade(self, factor: Array) -> None:
        """Multiply by ``factor`` (h, w)."""
        self.rgb *= factor


@dataclass(frozen=True)
class Kind:
    """A class of objects.

    Args:
        name: the class name.
        draw: paints on an Ink and returns the signed distance (h, w) of the silhouette, local units.
        half: half width and half height of the upright silhouette, local units; nothing is drawn outside.
        turn: largest rotation to either side, degrees.
        flat: narrowest aspect: the width or the height is multiplied by a number in [flat, 1].
    """

    name: str
    draw: Callable[[Ink, Dice], Array]
    half: tuple[float, float] = (1.0, 1.0)
    turn: float = 25.0
    flat: float = 0.88
