"""The classes of the main world. Three are red, two golden and two blue, so that colour alone does not tell them."""

from __future__ import annotations

import numpy as np

from detkd.data.scenes import shapes
from detkd.data.scenes.dice import Array, Dice
from detkd.data.scenes.ink import BLACK, WHITE, Ink, Kind, hsv, mix


def ladybird(ink: Ink, dice: Dice) -> Array:
    """A red dome with black dots, a middle line and a black head."""
    x, y = ink.x, ink.y
    body = shapes.circle(x, y, 0, 0.13, 0.87)
    head = shapes.ellipse(x, y, 0, -0.68, 0.48, 0.36)
    ink.wash(BLACK)
    ink.fill(body, hsv(dice.uniform(-0.03, 0.035), dice.uniform(0.8, 0.95), dice.uniform(0.7, 0.95)))
    dot = dice.uniform(0.15, 0.19)
    spots = shapes.circle(np.abs(x), y, 0.44, -0.14, dot)
    spots = np.minimum(spots, shapes.circle(np.abs(x), y, 0.5, 0.36, dot))
    if dice.chance(0.6):
        spots = np.minimum(spots, shapes.circle(np.abs(x), y, 0.2, 0.72, dot * 0.85))
    ink.fill(spots, BLACK)
    ink.fill(np.maximum(np.abs(x) - 0.045, body), BLACK)
    ink.fill(np.maximum(body, y + 0.44), BLACK)  # the collar between head and wings
    ink.fill(shapes.circle(np.abs(x), y, 0.27, -0.68, 0.11), WHITE)
    return np.minimum(body, head)


def coin(ink: Ink, dice: Dice) -> Array:
    """A golden disc with a raised rim, a relief and a gleam."""
    x, y = ink.x, ink.y
    disc = shapes.circle(x, y, 0, 0, 1)
    hue, value = dice.uniform(0.1, 0.14), dice.uniform(0.72, 0.95)
    light, dark = hsv(hue, dice.uniform(0.35, 0.6), value + 0.08), hsv(hue - 0.025, 0.8, value * 0.5)
    ink.wash(light)
    ink.fill(disc + 0.17, dark)
    ink.fill(disc + 0.25, hsv(hue, 0.7, value * 0.88))
    form = dice.integer(0, 2)
    for shift, colour in ((0.05, dark), (-0.04, light)):  # a relief is its own shadow, then itself a little up and left
        p, q = x - shift, y - shift
        if form == 0:
            relief = np.minimum(shapes.rectangle(p, q, 0, 0, 0.11, 0.48), shapes.rectangle(p, q, 0, 0.42, 0.28, 0.09))
        elif form == 1:
            relief = np.maximum(shapes.circle(p, q, 0, 0, 0.46), 0.24 - np.sqrt(p * p + q * q))
        else:
            relief = (np.abs(p) + np.abs(q)) * 0.7071 - 0.36
        ink.fill(relief, colour)
    gleam = np.abs((x + y) * 0.7071 - dice.uniform(-0.5, 0.2)) - 0.12
    ink.fill(np.maximum(gleam, disc), WHITE, dice.uniform(0.25, 0.5))
    return disc


def stop_sign(ink: Ink, dice: Dice) -> Array:
    """A red octagon with a white rim and a white band of letters."""
    x, y = ink.x, ink.y
    outline = shapes.octagon(x, y, 1)
    red = hsv(dice.uniform(-0.035, 0.02), dice.uniform(0.78, 0.95), dice.uniform(0.62, 0.92))
    ink.wash(WHITE)
    ink.fill(outline + 0.12, red)
    band = shapes.rectangle(x, y, 0, 0, 0.7, dice.uniform(0.2, 0.27))
    gaps = np.minimum(np.abs(np.abs(x) - 0.36), np.abs(x)) - 0.035  # four letters, too small to be read
    ink.fill(np.maximum(band, -gaps), WHITE)
    return outline


def leaf(ink: Ink, dice: Dice) -> Array:
    """A green blade, pointed at both ends, with a midrib, side veins and a stalk."""
    x, y = ink.x, ink.y
    waist, reach = 0.52, 0.96
    radius = (reach**2 + waist**2) / (2 * waist)
    blade = shapes.circle(np.abs(x), y + 0.14, waist - radius, 0, radius)
    hue, value = dice.uniform(0.2, 0.37), dice.uniform(0.45, 0.75)
    base, vein = hsv(hue, dice.uniform(0.6, 0.85), value), hsv(hue - 0.03, 0.4, value + 0.3)
    ink.wash(mix(base, (0.2, 0.15, 0.05), 0.35))
    ink.fill(blade, base)
    ink.fill(np.maximum(blade, -x), mix(base, BLACK, 0.22))  # one half lies in shade
    pitch = dice.uniform(0.3, 0.38)
    side = (np.abs(x) * 0.9 + y + 4) % pitch  # (h, w) lines that rise from the midrib
    ink.fill(np.maximum(np.abs(side - pitch / 2) - 0.04, blade + 0.06), vein, 0.75)
    ink.fill(np.maximum(np.abs(x) - 0.05, blade), vein)
    return np.minimum(blade, shapes.segment(x, y, (0, 0.6), (0.0, 1.05)) - 0.06)


def brick(ink: Ink, dice: Dice) -> Array:
    """A block of three courses of orange bricks in pale mortar."""
    x, y = ink.x, ink.y
    base = hsv(dice.uniform(0.02, 0.065), dice.uniform(0.6, 0.78), dice.uniform(0.58, 0.85))
    mortar = hsv(0.1, 0.1, dice.uniform(0.75, 0.9))
    ink.wash(mortar)
    for row, places in ((-1, (-0.575, 0.575)), (0, (-1.15, 0.0, 1.15)), (1, (-0.575, 0.575))):
        for place in places:
            tone = mix(base, BLACK if dice.chance(0.5) else WHITE, dice.uniform(0, 0.18))
            ink.fill(shapes.rectangle(x, y, place, row * 0.48, 0.515, 0.185), tone)
    return shapes.rectangle(x, y, 0, 0, 1.15, 0.72)


_PIPS = {
    1: ((0, 0),),
    2: ((-1, -1), (1, 1)),
    3: ((-1, -1), (0, 0), (1, 1)),
    4: ((-1, -1), (1, 1), (-1, 1), (1, -1)),
    5: ((-1, -1), (1, 1), (-1, 1), (1, -1), (0, 0)),
    6: ((-1, -1), (1, 1), (-1, 1), (1, -1), (-1, 0), (1, 0)),
}


def die(ink: Ink, dice: Dice) -> Array:
    """A white square with round corners and one to six dark pips."""
    x, y = ink.x, ink.y
    outline = shapes.rounded(x, y, 0, 0, 1, 1, 0.3)
    ink.wash(hsv(dice.uniform(), dice.uniform(0, 0.1), dice.uniform(0.86, 1.0)))
    ink.fill(-0.07 - outline, (0.62, 0.62, 0.66), 0.7)
    count = dice.integer(1, 6)
    radius = 0.3 if count == 1 else dice.uniform(0.19, 0.22)
    pips = None
    for column, row in _PIPS[count]:
        pip = shapes.circle(x, y, 0.52 * column, 0.52 * row, radius)
        pips = pip if pips is None else np.minimum(pips, pip)
    assert pips is not None
    ink.fill(pips, BLACK if dice.chance(0.75) else (0.75, 0.08, 0.1))
    return outline


def star(ink: Ink, dice: Dice) -> Array:
    """A golden star of five faceted arms."""
    outline, side = shapes.star(ink.x, ink.y - 0.0955, dice.uniform(0.46, 0.54))
    hue, value = dice.uniform(0.115, 0.155), dice.uniform(0.85, 1.0)
    ink.wash(hsv(hue, dice.uniform(0.55, 0.8), value))
    ink.fill(side, hsv(hue - 0.03, 0.85, value * 0.72))
    ink.fill(-0.07 - outline, hsv(hue - 0.05, 0.9, value * 0.55))
    return outline


def heart(ink: Ink, dice: Dice) -> Array:
    """A glossy red or pink heart with a seam."""
    x, y = ink.x, ink.y
    outline = shapes.heart(x, y)
    hue, value = dice.uniform(-0.09, 0.005), dice.uniform(0.78, 0.98)
    base = hsv(hue, dice.uniform(0.55, 0.9), value)
    ink.wash(base)
    ink.fill(-0.1 - outline, mix(base, BLACK, 0.4))
    ink.fill(outline + 0.42, mix(base, WHITE, 0.25))
    gloss = shapes.ellipse(x * 0.8 - y * 0.6, x * 0.6 + y * 0.8, -0.1, -0.68, 0.3, 0.14)
    ink.fill(gloss, WHITE, dice.uniform(0.65, 0.95))
    return outline


def arrow(ink: Ink, dice: Dice) -> Array:
    """A broad blue arrow with a white border, to the left or to the right."""
    x, y = ink.x * dice.sign(), ink.y
    shaft = shapes.rectangle(x, y, -0.45, 0, 0.6, 0.32)
    head = shapes.convex(x, y, ((0.0, -0.88), (1.05, 0.0), (0.0, 0.88)))
    outline = np.minimum(shaft, head)
    hue, value = dice.uniform(0.53, 0.65), dice.uniform(0.6, 0.95)
    base = hsv(hue, dice.uniform(0.65, 0.9), value)
    inner_shaft = shapes.rectangle(x, y, -0.3, 0, 0.63, 0.2)
    inner_head = shapes.convex(x, y, ((0.12, -0.62), (0.87, 0.0), (0.12, 0.62)))
    ink.wash(WHITE)
    ink.fill(np.minimum(inner_shaft, inner_head), base)
    return outline


def letter_a(ink: Ink, dice: Dice) -> Array:
    """A blue or violet capital A, dark-edged, with a pale line along its strokes."""
    x, y = ink.x, ink.y
    pen = dice.uniform(0.2, 0.25)
    legs = shapes.segment(np.abs(x), y, (0.0, -0.78), (0.68, 0.78)) - pen
    bar = shapes.segment(x, y, (-0.42, 0.3), (0.42, 0.3)) - pen * 0.75
    outline = np.minimum(legs, bar)
    hue, value = dice.uniform(0.56, 0.76), dice.uniform(0.6, 0.92)
    ink.wash(hsv(hue, 0.75, value * 0.5))
    ink.fill(outline + 0.07, hsv(hue, dice.uniform(0.55, 0.85), value))
    ink.fill(outline + pen - 0.055, hsv(hue, 0.18, 1.0), 0.85)
    return outline


MAIN = (
    Kind("ladybird", ladybird, (0.88, 1.05), turn=35),
    Kind("coin", coin, turn=40, flat=0.82),
    Kind("stop_sign", stop_sign, turn=15),
    Kind("leaf", leaf, (0.6, 1.12), turn=50),
    Kind("brick", brick, (1.15, 0.72), turn=20),
    Kind("die", die, turn=30, flat=0.92),
    Kind("star", star, (0.952, 0.906)),
    Kind("heart", heart, (1.1, 1.0)),
    Kind("arrow", arrow, (1.06, 0.9), turn=30),
    Kind("letter_a", letter_a, (0.94, 1.04), turn=20),
)
