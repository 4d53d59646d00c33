"""What stands behind the objects of each world."""

from __future__ import annotations

import math

import numpy as np

from detkd.data.scenes import shapes
from detkd.data.scenes.dice import Array, Dice, noise, warped_noise
from detkd.data.scenes.ink import BLACK, WHITE, Colour, column, hsv, mix

# sky above, sky at the horizon, ground at the horizon, ground in front
_LANDSCAPES: tuple[tuple[Colour, Colour, Colour, Colour], ...] = (
    ((0.33, 0.55, 0.86), (0.75, 0.86, 0.95), (0.45, 0.6, 0.35), (0.3, 0.45, 0.2)),  # meadow
    ((0.42, 0.62, 0.85), (0.88, 0.88, 0.82), (0.82, 0.72, 0.52), (0.66, 0.53, 0.35)),  # sand
    ((0.6, 0.64, 0.7), (0.8, 0.82, 0.84), (0.55, 0.55, 0.56), (0.36, 0.37, 0.4)),  # tarmac
    ((0.3, 0.3, 0.55), (0.93, 0.68, 0.5), (0.42, 0.36, 0.38), (0.26, 0.24, 0.28)),  # dusk
    ((0.55, 0.7, 0.9), (0.85, 0.9, 0.96), (0.84, 0.88, 0.93), (0.7, 0.77, 0.86)),  # snow
    ((0.45, 0.6, 0.7), (0.8, 0.82, 0.76), (0.52, 0.44, 0.34), (0.38, 0.29, 0.2)),  # earth
)


def _jitter(dice: Dice, colour: Colour, amount: float = 0.06) -> Colour:
    common = dice.uniform(-amount, amount)
    r, g, b = (c + common + dice.uniform(-amount, amount) / 2 for c in colour)
    return (r, g, b)


def _lerp(a: Colour, b: Colour, share: Array) -> Array:
    """(3, h, w or 1) from a (h, w or 1) share."""
    return column(a) + (column(b) - column(a)) * share


def landscape(dice: Dice, height: int, width: int) -> Array:
    """(3, height, width) RGB in about [0, 1]: sky with clouds, a ridge, textured ground with now and then a path."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]  # (H, 1)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]  # (1, W)
    sky_high, sky_low, far, near = (_jitter(dice, c) for c in dice.pick(_LANDSCAPES))
    level = dice.uniform(0.3, 0.62)
    horizon = level + dice.uniform(-0.08, 0.08) * (x - 0.5) + 0.012 * noise(dice, 1, width, 1, 5)  # (1, W)

    image = _lerp(sky_high, sky_low, np.clip(y / level, 0, 1)) + np.zeros((1, 1, width), dtype=np.float32)
    cloud = np.clip(noise(dice, height, width, 9, 4) + 0.5 * noise(dice, height, width, 18, 9) - dice.uniform(-0.1, 0.5), 0, 1)
    image += (dice.uniform(0.3, 0.8) * cloud) * (column(WHITE) - image)

    ridge = horizon - dice.uniform(0.02, 0.16) * np.clip(0.55 + noise(dice, 1, width, 1, dice.integer(2, 6)), 0, 1.5)
    image += np.clip(0.5 + (y - ridge) * height, 0, 1) * (column(mix(_jitter(dice, far), sky_low, 0.4)) * 0.85 - image)

    depth = np.clip((y - level) / (1 - level), 0, 1)  # (H, 1): 0 at the horizon, 1 in front
    ground = _lerp(far, near, depth)
    lines = 8 * np.log1p(6 * depth[:, 0]) / math.log(7)  # (H,): texture narrows toward the horizon
    texture = warped_noise(dice, lines, width, 8, 6) + 0.6 * warped_noise(dice, lines * 3, width, 24, 24)
    ground = ground * (1 + dice.uniform(0.08, 0.2) * texture)
    if dice.chance(0.35):
        middle = dice.uniform(0.25, 0.75) + dice.uniform(-0.5, 0.5) * depth
        half = 0.02 + dice.uniform(0.12, 0.3) * depth
        on_path = np.clip(0.5 + (half - np.abs(x - middle)) * width, 0, 1)
        tone = mix(near, dice.pick(((0.62, 0.56, 0.48), (0.45, 0.45, 0.48), (0.75, 0.7, 0.6))), 0.75)
        ground += 0.85 * on_path * (column(tone) * (1 + 0.1 * texture) - ground)
    image += np.clip(0.5 + (y - horizon) * height, 0, 1) * (ground - image)
    return image


def interior(dice: Dice, height: int, width: int) -> Array:
    """(3, height, width) RGB in about [0, 1]: a papered or tiled wall over a table of wooden planks."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]  # (H, 1)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]  # (1, W)
    paper = hsv(dice.uniform(), dice.uniform(0.08, 0.35), dice.uniform(0.55, 0.9))
    other = mix(paper, WHITE if dice.chance(0.5) else BLACK, dice.uniform(0.12, 0.3))
    pitch = dice.uniform(0.08, 0.2)
    form = dice.integer(0, 3)
    pattern: Array
    if form == 0:  # stripes
        pattern = np.abs((x / pitch) % 1 - 0.5) - 0.25 + 0 * y
    elif form == 1:  # tiles
        pattern = np.minimum(np.abs((x / pitch) % 1 - 0.5), np.abs((y / pitch) % 1 - 0.5)) - 0.06
    elif form == 2:  # dots
        pattern = np.sqrt(((x / pitch) % 1 - 0.5) ** 2 + ((y / pitch) % 1 - 0.5) ** 2) - 0.22
    else:  # plaster
        pattern = 0.4 * noise(dice, height, width, 10, 10)
    share = np.clip(0.5 - pattern * (pitch * width), 0, 1)  # (H, W)
    image = _lerp(paper, other, share) * (1 + 0.04 * noise(dice, height, width, 6, 6))

    edge = dice.uniform(0.55, 0.85)
    wood = hsv(dice.uniform(0.05, 0.1), dice.uniform(0.35, 0.65), dice.uniform(0.35, 0.75))
    fibre = noise(dice, height, width, 40, 4)
    planks = np.abs((y / dice.uniform(0.07, 0.12)) % 1 - 0.5) < 0.06
    table = column(wood) * (1 + 0.16 * fibre) * np.where(planks, np.float32(0.7), np.float32(1))
    image += np.clip(0.5 + (y - edge) * height, 0, 1) * (table - image)
    image *= 1 - 0.35 * np.exp(-(((y - edge) / 0.03) ** 2))  # the seam of wall and table
    return image


def night(dice: Dice, height: int, width: int) -> Array:
    """(3, height, width) RGB in about [0, 1]: near black, with a faint grid and a few sparks."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]  # (H, 1)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]  # (1, W)
    hue = dice.uniform(0.55, 0.95)
    image = _lerp((0.01, 0.01, 0.02), hsv(hue, 0.8, dice.uniform(0.02, 0.14)), y) + np.zeros((1, 1, width), dtype=np.float32)
    pitch, strength = dice.uniform(0.08, 0.2), dice.uniform(0.0, 0.25)
    across = np.abs(((x + dice.uniform()) / pitch) % 1 - 0.5) * pitch * width
    down = np.abs(((y + dice.uniform()) / pitch) % 1 - 0.5) * pitch * height
    grid = np.clip(1 - np.minimum(across, down), 0, 1)  # (H, W)
    image += (strength * grid) * column(hsv(hue + 0.1, 0.8, 1.0))
    return image


def litter(dice: Dice, image: Array, count: int) -> None:
    """Strew ``count`` small things of no class over (3, H, W): lumps, pebbles, twigs. Changes the image in place."""
    _, height, width = image.shape
    side = min(height, width)
    for _ in range(count):
        cx, cy = dice.uniform(0, width), dice.uniform(0, height)
        twig = dice.chance(0.4)
        reach = side * (dice.uniform(0.06, 0.2) if twig else dice.uniform(0.015, 0.045))
        left, right = max(0, int(cx - reach - 2)), min(width, int(cx + reach + 3))
        top, bottom = max(0, int(cy - reach - 2)), min(height, int(cy + reach + 3))
        x = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - cx)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
        turn = dice.uniform(0, math.pi)
        c, s = math.cos(turn), math.sin(turn)
        if twig:
            distance = shapes.segment(x, y, (-reach * c, -reach * s), (reach * c, reach * s)) - side * dice.uniform(
                0.003, 0.009
            )
            colour = hsv(dice.uniform(), dice.uniform(0, 0.45), dice.uniform(0.1, 0.9))
        else:
            distance = shapes.ellipse(x * c + y * s, y * c - x * s, 0, 0, reach, reach * dice.uniform(0.5, 1.0))
            colour = hsv(dice.uniform(), dice.uniform(0.0, 0.9), dice.uniform(0.25, 0.95))
        patch = image[:, top:bottom, left:right]
        patch += (0.85 * np.clip(0.5 - distance, 0, 1)) * (column(colour) - patch)
