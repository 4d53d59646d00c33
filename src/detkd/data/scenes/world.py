"""The three worlds, and how a scene of one is laid out, painted, lit and boxed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from detkd.data.scenes import backgrounds
from detkd.data.scenes.dice import Array, Dice, noise
from detkd.data.scenes.ink import Ink, Kind, column
from detkd.data.scenes.sprites_main import MAIN
from detkd.data.scenes.sprites_neon import NEON
from detkd.data.scenes.sprites_same import SAME_DOMAIN
from detkd.errors import InputError
from detkd.structures import Target

LEAST_VISIBLE = 0.4
"""An object of which less can be seen, because of those in front of it, is left out of the scene."""


@dataclass(frozen=True)
class Placement:
    """Where an object stands: label; half of its long side, centre in pixels; angle in radians; width and height factors."""

    label: int
    half: float
    cx: float
    cy: float
    angle: float
    stretch: tuple[float, float]


@dataclass(frozen=True)
class Patch:
    """An object by itself. top, left: where in the image its window starts (may be < 0); shape (h, w): share of a pixel that is
    object; alpha (h, w): how much it hides, glow included; rgb (3, h, w); shadow (h, w)."""

    label: int
    top: int
    left: int
    shape: Array
    alpha: Array
    rgb: Array
    shadow: Array


@dataclass(frozen=True)
class World:
    """What sets one variant apart from the others.

    Args:
        kinds: the classes.
        ground: paints (3, H, W) of background.
        shelves: objects stand in rows, upright; else anywhere.
        lit: objects are shaded and cast shadows, light falls off over the scene; else they glow by themselves.
        count: least and most objects a scene.
        size: least and largest long side of an object, as a share of the shorter image side.
    """

    kinds: tuple[Kind, ...]
    ground: Callable[[Dice, int, int], Array]
    shelves: bool
    lit: bool
    count: tuple[int, int]
    size: tuple[float, float]


WORLDS: dict[str, World] = {
    "main": World(MAIN, backgrounds.landscape, False, True, (1, 5), (0.17, 0.58)),
    "same_domain": World(SAME_DOMAIN, backgrounds.interior, True, True, (2, 6), (0.17, 0.45)),
    "out_of_domain": World(NEON, backgrounds.night, False, False, (1, 5), (0.2, 0.6)),
}


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it. image: (3, H, W) uint8 RGB; target: boxes in its pixels and labels."""

    image: torch.Tensor
    target: Target


def _extent(kind: Kind, spot: Placement) -> tuple[float, float]:
    """Half width and half height in pixels of the box of a turned rectangle that holds the object."""
    scale = spot.half / max(kind.half)
    a, b = kind.half[0] * spot.stretch[0] * scale, kind.half[1] * spot.stretch[1] * scale
    c, s = abs(math.cos(spot.angle)), abs(math.sin(spot.angle))
    return a * c + b * s, a * s + b * c


def layout(dice: Dice, world: World, height: int, width: int) -> list[Placement]:
    """Choose classes, sizes and places; far ones first. Objects that find no place are left out, the first always has one."""
    count = dice.integer(*world.count)
    side = min(height, width)
    low, high = world.size
    high = min(high, 1.1 / math.sqrt(count)) if count > 3 else high
    common = dice.uniform(low, high)
    rows = sorted(dice.uniform(0.35, 0.95) for _ in range(dice.integer(1, 2)))
    placed: list[tuple[Placement, tuple[float, float, float, float]]] = []
    for _ in range(count):
        label = dice.integer(0, len(world.kinds) - 1)
        kind = world.kinds[label]
        share = low * (high / low) ** dice.uniform()  # the logarithm of the size is uniform
        if world.shelves:
            share = min(max(common * dice.uniform(0.75, 1.25), low), high)
        half = 0.5 * share * side
        # slim things get a longer long side, so that no class is much smaller than another
        half *= (max(kind.half) / min(kind.half)) ** 0.4
        angle = math.radians(dice.uniform(-kind.turn, kind.turn))
        squeeze = dice.uniform(kind.flat, 1.0)
        stretch = (squeeze, 1.0) if dice.chance(0.5) else (1.0, squeeze)
        a, b = _extent(kind, Placement(label, half, 0.0, 0.0, angle, stretch))
        shrink = min(1.0, 0.3 * side / max(a, b))  # no box is longer than 60% of the shorter image side
        half, a, b = half * shrink, a * shrink, b * shrink
        for _ in range(12):
            inside = dice.uniform(0.72, 1.1)  # 1: the box touches the border; 0.72: 14% of it may be cut off
            cx = dice.uniform(min(a * inside, width / 2), max(width - a * inside, width / 2))
            cy = dice.uniform(min(b * inside, height / 2), max(height - b * inside, height / 2))
            if world.shelves:
                cy = max(dice.pick(rows) * height - b, 0.8 * b)
            box = (cx - a, cy - b, cx + a, cy + b)
            if all(_overlap(box, other) <= 0.35 for _, other in placed):
                placed.append((Placement(label, half, cx, cy, angle, stretch), box))
                break
    placed.sort(key=lambda item: item[1][3])  # what stands lower stands nearer
    return [spot for spot, _ in placed]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over the smaller area of two xyxy boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def paint(dice: Dice, kind: Kind, spot: Placement, light: tuple[float, float], *, lit: bool) -> Patch:
    """Draw one object by itself. ``light``: unit vector on the screen toward the light."""
    a, b = _extent(kind, spot)
    soft = 1.5 + 0.22 * spot.half  # reach of shadow or glow beyond the outline, pixels
    left, right = math.floor(spot.cx - a - soft - 1), math.ceil(spot.cx + a + soft + 1)
    top, bottom = math.floor(spot.cy - b - soft - 1), math.ceil(spot.cy + b + soft + 1)
    dx = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - spot.cx)  # (1, w)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - spot.cy)  # (h, 1)
    scale = spot.half / max(kind.half)
    c, s = math.cos(spot.angle) / scale, math.sin(spot.angle) / scale
    x = (dx * c + dy * s) * np.float32(1 / spot.stretch[0])  # (h, w)
    y = (dy * c - dx * s) * np.float32(1 / spot.stretch[1])  # (h, w)
    ink = Ink(x, y, 1 / (scale * math.sqrt(spot.stretch[0] * spot.stretch[1])))
    distance = kind.draw(ink, dice)
    shape = ink.cover(distance)
    reach = np.clip(0.5 - distance * (scale / (2 * soft)), 0, 1)  # (h, w): 1 inside, falls to 0 over ``soft`` about the outline
    if not lit:
        glow = np.clip(1 - distance * (scale / soft), 0, 1) ** 2
        return Patch(spot.label, top, left, shape, np.maximum(shape, 0.5 * glow), ink.rgb, np.zeros_like(shape))
    grain = noise(dice, 16 * math.ceil(len(dy) / 16), 16 * math.ceil(dx.shape[1] / 16), 8, 8)[: len(dy), : dx.shape[1]]
    slope = (dx * light[0] + dy * light[1]) * np.float32(0.16 / spot.half)
    rim = np.clip(1 + distance * 8, 0, 1)  # the last eighth before the outline falls away from the light
    ink.shade((1 + slope + 0.05 * grain) * (1 - 0.22 * rim))
    return Patch(spot.label, top, left, shape, shape, ink.rgb, reach * reach)


def _windows(
    patch: Patch, height: int, width: int, down: int = 0, right: int = 0
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the image and of the patch, moved by whole pixels, that lie on each other."""
    top, left = patch.top + down, patch.left + right
    h, w = patch.shape.shape
    y0, y1, x0, x1 = max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)
    y1, x1 = max(y0, y1), max(x0, x1)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def box_of(shape: Array) -> tuple[float, float, float, float]:
    """xyxy extent of a coverage mask (h, w) in steps of 1/64 pixel, which float32 and json keep exactly.

    An edge lies where the coverage summed across it says: an outermost column of pixels covered to 0.3 at most adds 0.3 pixels.
    Zeros where no pixel is half covered.
    """
    spans: list[float] = []
    for profile in (shape.max(axis=0), shape.max(axis=1)):  # (w,), (h,)
        full = np.flatnonzero(profile >= 0.5)
        if not len(full):
            return (0.0, 0.0, 0.0, 0.0)
        first, last = int(full[0]), int(full[-1])
        before, after = float(profile[:first].sum()), float(profile[last + 1 :].sum())
        spans += [first + 1 - float(profile[first]) - before, last + float(profile[last]) + after]
    x0, x1, y0, y1 = (round(v * 64) / 64 for v in spans)
    return (max(x0, 0.0), max(y0, 0.0), min(x1, float(shape.shape[1])), min(y1, float(shape.shape[0])))


def compose(dice: Dice, world: World, spots: list[Placement], height: int, width: int) -> tuple[Array, list[Array], list[int]]:
    """Paint a scene: image (3, H, W) in about [0, 1]; for each object kept its coverage (H, W), as if nothing hid it; labels."""
    image = world.ground(dice, height, width)
    backgrounds.litter(dice, image, dice.integer(2, 8))
    turn = dice.uniform(0.15, 0.85) * math.pi
    light = (math.cos(turn), -math.sin(turn))  # from above, left to right
    patches = [paint(dice, world.kinds[spot.label], spot, light, lit=world.lit) for spot in spots]

    hidden = np.zeros((height, width), dtype=np.float32)
    kept: list[tuple[Patch, Placement, Array]] = []
    for patch, spot in zip(reversed(patches), reversed(spots)):  # from the front to the back
        here, there = _windows(patch, height, width)
        shape = patch.shape[there]
        total = float(shape.sum())
        if total < 1 or float((shape * (1 - hidden[here])).sum()) < LEAST_VISIBLE * total:
            continue
        hidden[here] = np.maximum(hidden[here], shape)
        mask = np.zeros((height, width), dtype=np.float32)
        mask[here] = shape
        kept.append((patch, spot, mask))

    kept.reverse()
    dark = dice.uniform(0.3, 0.55)
    for patch, spot, _ in kept:
        if world.lit:
            throw = 0.14 * spot.half
            here, there = _windows(patch, height, width, round(max(1.0, throw * 1.2)), round(-light[0] * throw * 2))
            image[:, here[0], here[1]] *= 1 - np.float32(dark) * patch.shadow[there]
        here, there = _windows(patch, height, width)
        area = image[:, here[0], here[1]]
        area += patch.alpha[there] * (patch.rgb[:, there[0], there[1]] - area)

    if world.lit:
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        tint = column((1 + dice.uniform(-0.05, 0.05), 1.0, 1 + dice.uniform(-0.05, 0.05))) * np.float32(
            dice.uniform(0.82, 1.12)
        )
        image *= tint * (1 + dice.uniform(0.05, 0.18) * (x * light[0] + y * light[1]))
    return image, [mask for _, _, mask in kept], [patch.label for patch, _, _ in kept]


def draw_scene(seed: int, index: int, *, variant: str = "main", image_size: tuple[int, int] = (96, 96)) -> Scene:
    """Draw scene ``index`` of the world that ``seed`` makes.

    A function of its arguments alone: no global generator is read or moved, and any order of calls gives the same scenes. On other
    platforms single pixels may differ by one step where their sines and roots do.

    A box holds the part of an object that lies within the image, as if nothing stood in front of it: amodal but for the border,
    tight to a fraction of a pixel. Objects are in order from far to near. Every scene has at least one.

    Args:
        seed, index: whole numbers >= 0.
        variant: "main", "same_domain" or "out_of_domain".
        image_size: (height, width) in pixels, 32 at least.

    Returns:
        image (3, H, W) uint8 RGB; target boxes (n, 4) float32 xyxy pixels, labels (n,) int64 that index ``CLASSES[variant]``.

    Raises:
        InputError: an unknown variant, a negative seed or index, an image too small.
    """
    world, (height, width) = check_arguments(seed, variant, image_size)
    if index < 0:
        raise InputError(f"scenes: expected index >= 0, got {index}")
    dice = Dice(seed, index, list(WORLDS).index(variant), height, width)
    image, masks, labels = compose(dice, world, layout(dice, world, height, width), height, width)
    image = image * np.float32(255)
    image += np.float32(dice.uniform(1.0, 4.0)) * dice.grain(1, height, width)  # of brightness
    image += np.float32(dice.uniform(0.5, 2.0)) * dice.grain(3, height, width)  # of colour
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    boxes = torch.tensor([box_of(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4)  # (n, 4)
    return Scene(torch.from_numpy(pixels), Target(boxes=boxes, labels=torch.tensor(labels, dtype=torch.int64)))


def check_arguments(seed: int, variant: str, image_size: tuple[int, int]) -> tuple[World, tuple[int, int]]:
    """The world of ``variant`` and ``image_size`` as two numbers. Raises InputError naming what was wrong."""
    if variant not in WORLDS:
        raise InputError(f"scenes: expected variant to be one of {', '.join(WORLDS)}, got {variant!r}")
    if seed < 0:
        raise InputError(f"scenes: expected seed >= 0, got {seed}")
    if len(image_size) != 2 or min(image_size) < 32:
        raise InputError(f"scenes: expected image_size (height, width) of 32 pixels at least, got {tuple(image_size)}")
    return WORLDS[variant], (int(image_size[0]), int(image_size[1]))
