"""Signed distances of plane shapes: negative inside, in the units of the coordinates, x to the right and y down.

Every function maps coordinate arrays of one shape to distances of that shape. Exact unless said otherwise; near the outline, which is
all that anti-aliasing reads, the inexact ones are right to a few per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from detkd.data.scenes.dice import Array

Point = tuple[float, float]


def circle(x: Array, y: Array, cx: float, cy: float, radius: float) -> Array:
    """A disc."""
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - radius


def ellipse(x: Array, y: Array, cx: float, cy: float, a: float, b: float) -> Array:
    """An ellipse of half axes a, b. First-order distance: value over the length of its gradient."""
    p, q = (x - cx) / a, (y - cy) / b
    k = np.sqrt(p * p + q * q) + 1e-6
    slope = np.sqrt((p / a) ** 2 + (q / b) ** 2) + 1e-6
    return k * (k - 1) / slope


def rectangle(x: Array, y: Array, cx: float, cy: float, a: float, b: float) -> Array:
    """A rectangle of half sides a, b. Outside its corners the mitred distance."""
    return np.maximum(np.abs(x - cx) - a, np.abs(y - cy) - b)


def rounded(x: Array, y: Array, cx: float, cy: float, a: float, b: float, radius: float) -> Array:
    """A rectangle of half sides a, b with round corners."""
    p, q = np.abs(x - cx) - (a - radius), np.abs(y - cy) - (b - radius)
    outside = np.sqrt(np.maximum(p, 0) ** 2 + np.maximum(q, 0) ** 2)
    return outside + np.minimum(np.maximum(p, q), 0) - radius


def octagon(x: Array, y: Array, radius: float) -> Array:
    """A regular octagon on its side, of inscribed ``radius``. Outside its corners the mitred distance."""
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y), (x + y) * np.float32(math.sqrt(0.5))) - radius


def convex(x: Array, y: Array, points: Sequence[Point]) -> Array:
    """A convex polygon, clockwise on the screen. Outside its corners the mitred distance."""
    distance: Array | None = None
    for (ax, ay), (bx, by) in zip(points, (*points[1:], points[0])):
        length = math.hypot(bx - ax, by - ay)
        nx, ny = (by - ay) / length, (ax - bx) / length
        edge = x * nx + (y * ny - (ax * nx + ay * ny))
        distance = edge if distance is None else np.maximum(distance, edge)
    assert distance is not None
    return distance


def segment(x: Array, y: Array, a: Point, b: Point) -> Array:
    """Distance >= 0 to the line from a to b; take the pen's half width from it."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    px, py = x - a[0], y - a[1]
    t = np.clip((px * dx + py * dy) * (1 / (dx * dx + dy * dy)), 0, 1)
    return np.sqrt((px - t * dx) ** 2 + (py - t * dy) ** 2)


def path(x: Array, y: Array, points: Sequence[Point]) -> Array:
    """Distance >= 0 to the open line through ``points``."""
    distance = segment(x, y, points[0], points[1])
    for a, b in pairwise(points[1:]):
        distance = np.minimum(distance, segment(x, y, a, b))
    return distance


def star(x: Array, y: Array, inner: float) -> tuple[Array, Array]:
    """A five-pointed star of radius 1, one tip up, its notches at radius ``inner``.

    Returns the distance and, of one shape with it, the distance >< 0 from the middle line of the nearest arm (which half of an arm).
    """
    x, y = np.array(x), np.negative(y)
    side = np.array(x)
    cos36, sin36 = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x = np.abs(x)
    for nx, ny in ((cos36, -sin36), (-cos36, -sin36)):  # fold the plane onto one arm
        over = 2 * np.maximum(nx * x + ny * y, 0)
        x, y = x - over * nx, y - over * ny
        side = np.where(over > 0, -side, side) if nx > 0 else side
    half = np.abs(x)
    sense = np.where(side * x < 0, -1, 1).astype(np.float32)
    tip, notch = (0.0, 1.0), (inner * sin36, inner * cos36)
    edge = segment(half, y, tip, notch)
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    outside = (half - tip[0]) * ey - (y - tip[1]) * ex < 0
    return np.where(outside, edge, -edge), half * sense


def heart(x: Array, y: Array) -> Array:
    """A heart within [-1.094, 1.094] x [-1, 1], tip down: two quarter discs on a square stood on its corner."""
    unit = 0.5518
    px, py = np.abs(x) * unit, unit * (1 - y)
    lobe = np.sqrt((px - 0.25) ** 2 + (py - 0.75) ** 2) - 0.25 * math.sqrt(2)
    m = np.maximum(px + py, 0) * 0.5
    near = np.sqrt(np.minimum(px**2 + (py - 1) ** 2, (px - m) ** 2 + (py - m) ** 2))
    return np.where(px + py > 1, lobe, np.where(px > py, near, -near)) / unit
