"""The classes of the same-domain world: drawn by the same means as the main ones, but other things."""

from __future__ import annotations

import math

import numpy as np

from detkd.data.scenes import shapes
from detkd.data.scenes.dice import Array, Dice
from detkd.data.scenes.ink import BLACK, WHITE, Ink, Kind, hsv, mix


def moon(ink: Ink, dice: Dice) -> Array:
    """A pale crescent with craters."""
    x, y = ink.x * dice.sign(), ink.y
    outline = np.maximum(shapes.circle(x, y, 0.2, 0, 1), -shapes.circle(x, y, dice.uniform(0.6, 0.7), 0, 0.82))
    hue, value = dice.uniform(0.12, 0.17), dice.uniform(0.85, 1.0)
    base = hsv(hue, dice.uniform(0.15, 0.4), value)
    ink.wash(base)
    for cx, cy, radius in ((-0.45, -0.15, 0.16), (-0.3, 0.4, 0.12), (-0.05, -0.68, 0.1), (0.12, 0.75, 0.08)):
        ink.fill(shapes.circle(x, y, cx, cy, radius), mix(base, BLACK, 0.3))
    return outline


def mushroom(ink: Ink, dice: Dice) -> Array:
    """A brown or purple cap with pale spots on a pale stem."""
    x, y = ink.x, ink.y
    cap = np.maximum(shapes.ellipse(x, y, 0, 0.1, 1, 1.05), y - 0.15)
    stem = shapes.rounded(x, y, 0, 0.5, 0.32, 0.5, 0.15)
    ink.wash(hsv(0.11, 0.18, dice.uniform(0.82, 0.95)))
    ink.fill(np.maximum(stem, np.abs(x * 6 % 1 - 0.5) / 6 - 0.02), (0.6, 0.52, 0.4))
    ink.fill(cap, hsv(dice.pick((0.05, 0.07, 0.8)) + dice.uniform(-0.02, 0.02), 0.6, dice.uniform(0.45, 0.7)))
    for cx, cy, radius in ((0, -0.55, 0.2), (-0.52, -0.2, 0.17), (0.52, -0.2, 0.17), (0.0, -0.02, 0.12)):
        ink.fill(shapes.circle(x, y, cx, cy, radius), (0.96, 0.92, 0.8))
    return np.minimum(cap, stem)


def fish(ink: Ink, dice: Dice) -> Array:
    """A scaly fish, to the left or to the right."""
    x, y = ink.x * dice.sign(), ink.y
    body = shapes.ellipse(x, y, 0.2, 0, 0.82, 0.52)
    tail = shapes.convex(x, y, ((-1.02, -0.55), (-0.3, 0.0), (-1.02, 0.55), (-0.85, 0.0)))
    tail = np.maximum(tail, -1.02 - x)
    hue, value = dice.pick((0.48, 0.52, 0.06)) + dice.uniform(-0.02, 0.02), dice.uniform(0.7, 0.95)
    base = hsv(hue, 0.65, value)
    ink.wash(mix(base, BLACK, 0.25))
    ink.fill(body, base)
    scale = np.sin(x * 14) * np.sin(y * 14) * 0.12
    ink.fill(np.maximum(np.maximum(scale - 0.01, body + 0.08), x - 0.5), mix(base, WHITE, 0.4))
    ink.fill(np.abs(x - 0.52) - 0.03 + 9 * (body > 0), mix(base, BLACK, 0.5))
    ink.fill(shapes.circle(x, y, 0.74, -0.12, 0.14), WHITE)
    ink.fill(shapes.circle(x, y, 0.77, -0.12, 0.075), BLACK)
    return np.minimum(body, tail)


def beach_ball(ink: Ink, dice: Dice) -> Array:
    """A ball of six wedges, white and coloured by turns."""
    x, y = ink.x, ink.y
    wedge = None
    for turn in (0.0, math.pi / 3, 2 * math.pi / 3):
        line = np.clip((x * math.cos(turn) + y * math.sin(turn)) * (1 / ink.pixel), -1, 1)
        wedge = line if wedge is None else wedge * line
    assert wedge is not None
    ink.wash(WHITE)
    hue = dice.uniform()
    ink.fill(wedge * ink.pixel, hsv(hue, 0.8, 0.85))
    ink.fill(np.maximum(wedge * ink.pixel, x - 0.02), hsv(hue + 0.33, 0.8, 0.85))
    ink.fill(shapes.circle(x, y, 0, 0, 0.18), WHITE)
    return shapes.circle(x, y, 0, 0, 1)


def flower(ink: Ink, dice: Dice) -> Array:
    """Five round petals about a yellow heart."""
    x, y = ink.x, ink.y
    petals = None
    for k in range(5):
        turn = 2 * math.pi * k / 5 - math.pi / 2
        petal = shapes.circle(x, y, 0.58 * math.cos(turn), 0.58 * math.sin(turn), 0.4)
        petals = petal if petals is None else np.minimum(petals, petal)
    assert petals is not None
    base = hsv(dice.uniform(0.78, 0.95), dice.uniform(0.35, 0.7), dice.uniform(0.8, 0.98))
    ink.wash(base)
    ink.fill(-0.07 - petals, mix(base, BLACK, 0.3))
    ink.fill(shapes.circle(x, y, 0, 0, 0.52), mix(base, WHITE, 0.45))
    core = shapes.circle(x, y, 0, 0, 0.32)
    ink.fill(core, (0.95, 0.75, 0.15))
    ink.fill(np.maximum(np.sin(x * 24) * np.sin(y * 24) * 0.1, core), (0.7, 0.42, 0.05))
    return np.minimum(petals, core)


def envelope(ink: Ink, dice: Dice) -> Array:
    """A cream letter with a flap and a striped edge."""
    x, y = ink.x, ink.y
    outline = shapes.rectangle(x, y, 0, 0, 1.12, 0.75)
    base = hsv(0.11, dice.uniform(0.05, 0.25), dice.uniform(0.85, 0.98))
    stripe = np.abs((x + y + 8) % 0.6 - 0.3) - 0.08
    ink.wash(WHITE)
    ink.fill(stripe, hsv(dice.pick((0.0, 0.6)), 0.75, 0.75))
    ink.fill(outline + 0.13, base)
    flap = np.abs(np.abs(x) * 0.62 + y - 0.1) * 0.85 - 0.045
    ink.fill(np.maximum(flap, outline + 0.13), mix(base, BLACK, 0.55))
    ink.fill(shapes.circle(x, y, 0, 0.08, 0.17), (0.7, 0.1, 0.12))
    return outline


def traffic_light(ink: Ink, dice: Dice) -> Array:
    """A dark box of three lamps, one of them lit."""
    x, y = ink.x, ink.y
    outline = shapes.rounded(x, y, 0, 0, 0.5, 1.12, 0.18)
    ink.wash(hsv(dice.uniform(0.3, 0.6), 0.25, dice.uniform(0.15, 0.28)))
    ink.fill(-0.06 - outline, (0.75, 0.7, 0.3))
    lit = dice.integer(0, 2)
    for place, hue in enumerate((0.0, 0.125, 0.38)):
        value = 1.0 if place == lit else 0.42
        ink.fill(shapes.circle(x, y, 0, 0.68 * (place - 1), 0.3), hsv(hue, 0.85, value))
    return outline


def gift(ink: Ink, dice: Dice) -> Array:
    """A dotted box with a ribbon and a bow."""
    x, y = ink.x, ink.y
    box = shapes.rectangle(x, y, 0, 0.28, 0.9, 0.78)
    bow = np.abs(shapes.ellipse(np.abs(x), y, 0.34, -0.74, 0.32, 0.2)) - 0.08
    hue = dice.uniform()
    paper, ribbon = hsv(hue, 0.55, dice.uniform(0.6, 0.9)), hsv(hue + 0.45, 0.75, dice.uniform(0.75, 0.95))
    ink.wash(ribbon)
    ink.fill(box, paper)
    ink.fill(np.maximum(0.1 - np.sin(x * 12) * np.sin(y * 12) * 0.2, box), mix(paper, WHITE, 0.6))
    ink.fill(np.maximum(np.abs(x) - 0.15, box), ribbon)
    ink.fill(np.maximum(np.abs(y + 0.2) - 0.11, box), mix(ribbon, BLACK, 0.15))
    return np.minimum(box, bow)


SAME_DOMAIN = (
    Kind("moon", moon, (1.0, 1.0), turn=20),
    Kind("mushroom", mushroom, (1.0, 1.0), turn=10),
    Kind("fish", fish, (1.04, 0.58), turn=15),
    Kind("beach_ball", beach_ball, turn=60, flat=0.95),
    Kind("flower", flower, turn=35),
    Kind("envelope", envelope, (1.12, 0.75), turn=10),
    Kind("traffic_light", traffic_light, (0.5, 1.12), turn=8),
    Kind("gift", gift, (0.92, 1.06), turn=8),
)
