"""Training augmentations over a batch, on its device; targets follow.

Each takes images (B, 3, H, W) float in [0, 1], targets (one an image, boxes xyxy in pixels of the images) or None, and a
generator, and returns images and targets; what it was given is left as it was. All draws come from the generator, on any device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from detkd.boxes import area_xyxy, clip_xyxy
from detkd.data.counts import counts_from
from detkd.data.tile import MOST, Cell, boxes_in_cells, lay_out, resized
from detkd.errors import InputError
from detkd.structures import Target

Augmented = tuple[Tensor, "list[Target] | None"]


class Augmentation(Protocol):
    """What all of this file, and any of a user's own, look like."""

    def __call__(self, images: Tensor, targets: Sequence[Target] | None, generator: Generator) -> Augmented: ...


class Compose:
    """Apply augmentations one after another."""

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        self.augmentations = list(augmentations)

    def __call__(self, images: Tensor, targets: Sequence[Target] | None, generator: Generator) -> Augmented:
        followed = None if targets is None else list(targets)
        for augmentation in self.augmentations:
            images, followed = augmentation(images, followed, generator)
        return images, followed


class HorizontalFlip:
    """Mirror each image left to right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = _probability("HorizontalFlip.p", p)

    def __call__(self, images: Tensor, targets: Sequence[Target] | None, generator: Generator) -> Augmented:
        flip = _uniform(len(images), generator=generator) < self.p  # (B,)
        flipped = torch.where(flip.to(images.device)[:, None, None, None], images.flip(-1), images)
        if targets is None:
            return flipped, None
        width = images.shape[-1]
        return flipped, [_mirror(t, width) if f else t for t, f in zip(targets, flip.tolist())]


class HsvJitter:
    """Shift the hue and scale saturation and value of each image.

    Args:
        hue: largest shift, in turns of the colour circle. saturation, value: largest relative change, at most 1.

    Each draws u ~ U[-1, 1] an image: h + u hue (mod 1), s (1 + u saturation), v (1 + u value), the last two clamped to [0, 1].
    The defaults are the gains of YOLOv3 training that DIODE distils with. Departure: there hue is multiplied by 1 + u gain,
    which leaves reds alone and moves magentas most; here every hue moves alike, by at most the same angle.
    """

    def __init__(self, hue: float = 0.0138, saturation: float = 0.678, value: float = 0.36) -> None:
        self.hue = _probability("HsvJitter.hue", hue)
        self.saturation = _probability("HsvJitter.saturation", saturation)
        self.value = _probability("HsvJitter.value", value)

    def __call__(self, images: Tensor, targets: Sequence[Target] | None, generator: Generator) -> Augmented:
        draws = (2 * _uniform(3, len(images), generator=generator) - 1).to(images)[:, :, None, None]  # (3, B, 1, 1)
        h, s, v = rgb_to_hsv(images)  # (B, H, W) each
        h = _turn(h + draws[0] * self.hue)
        s = (s * (1 + draws[1] * self.saturation)).clamp(0, 1)
        v = (v * (1 + draws[2] * self.value)).clamp(0, 1)
        return hsv_to_rgb(h, s, v), None if targets is None else list(targets)


class Mosaic:
    """Replace images by a random window on a 2 x 2 tile of four images of the batch.

    Args:
        p: probability an image; the others stay as they are.
        min_visible: a box is dropped when the window shows less than this fraction of its area,
        min_side: or when what is left of it is less than this many pixels wide or high.

    The image itself is top left, the three others are drawn from the batch with replacement. The window has the aspect ratio
    of the image and 1 to 2 times its side (uniform), lies anywhere inside the tile, and is resampled (bilinear) to the image's
    size, so objects come at 0.5 to 1 times their size. Departure from the mosaic of YOLOv4: there each of the four is scaled
    and cut on its own, and the canvas is padded.
    """

    def __init__(self, p: float = 1.0, min_visible: float = 0.1, min_side: float = 2.0) -> None:
        self.p = _probability("Mosaic.p", p)
        self.min_visible = _probability("Mosaic.min_visible", min_visible)
        self.min_side = min_side

    def __call__(self, images: Tensor, targets: Sequence[Target] | None, generator: Generator) -> Augmented:
        batch, _, height, width = images.shape
        chosen = _uniform(batch, generator=generator) < self.p  # (B,)
        sources = torch.randint(batch, (batch, 4), generator=generator, device=generator.device).cpu()  # tl, tr, bl, br
        sources[:, 0] = torch.arange(batch)
        scale = 1 + _uniform(batch, generator=generator)  # (B,) window side over image side
        corner = _uniform(batch, 2, generator=generator) * (2 - scale[:, None])  # (B, 2) x, y in image sides
        if not bool(chosen.any()):
            return images, None if targets is None else list(targets)

        rows = chosen.nonzero().squeeze(1)  # (M,)
        tile = images.new_empty(len(rows), 3, 2, height, 2, width)  # rows and columns of the tile
        for place, source in enumerate(sources[rows].to(images.device).unbind(1)):  # (M,) each
            tile[:, :, place // 2, :, place % 2] = images[source]
        # grid_sample's -1..1 spans the two image sides of the tile, so a window's half side and centre are in image sides
        theta = torch.zeros(len(rows), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale[rows] / 2
        theta[:, :, 2] = corner[rows] + scale[rows, None] / 2 - 1
        grid = F.affine_grid(theta.to(images), [len(rows), 3, height, width], align_corners=False)
        windows = F.grid_sample(
            tile.flatten(4).flatten(2, 3), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        mosaics = images.index_copy(0, rows.to(images.device), windows)
        if targets is None:
            return mosaics, None

        side = torch.tensor([width, height], dtype=torch.float32)
        followed: list[Target] = []
        for index, target in enumerate(targets):
            if not chosen[index]:
                followed.append(target)
                continue
            parts = [targets[int(s)] for s in sources[index]]
            quadrants = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]) * side  # (4, 2) x, y
            shift = (quadrants - corner[index] * side).repeat(1, 2).to(target["boxes"])  # (4, 4)
            moved = torch.cat([(part["boxes"] + s) / float(scale[index]) for part, s in zip(parts, shift)])
            labels = torch.cat([part["labels"] for part in parts])
            followed.append(_keep_visible(moved, labels, (height, width), self.min_visible, self.min_side))
        return mosaics, followed


class Tile:
    """Replace images by tilings of several images of the batch, as :func:`detkd.data.tile.lay_out` lays them out.

    Args:
        counts: how many images one is made of: a name, {count: weight} or [fewest, most], see :mod:`detkd.data.counts`.
        p: probability an image; the others stay as they are.
        min_side: a box that becomes less than this many pixels wide or high is dropped.
        most: largest count, at most 25; a distribution by name is cut there.

    The image itself has one of the cells, the others are drawn from the batch with replacement. Each is resized to its cell
    (bilinear, anti-aliased). Source: DIODE's tiles (Chawla et al., WACV 2021), which are made once and on disk; here they are
    made anew each step.
    """

    def __init__(
        self,
        counts: str | Mapping[int, float] | Sequence[int] = "coco",
        p: float = 1.0,
        min_side: float = 2.0,
        most: int = 9,
    ) -> None:
        if not 1 <= most <= MOST:
            raise InputError(f"Tile.most: expected 1 to {MOST} images, got {most}")
        if not min_side >= 0:
            raise InputError(f"Tile.min_side: expected pixels from 0, got {min_side}")
        self.counts = counts_from(counts, most, "Tile.counts")
        self.p = _probability("Tile.p", p)
        self.min_side = min_side

    def __call__(self, images: Tensor, targets: Sequence[Target] | None, generator: Generator) -> Augmented:
        batch, _, height, width = images.shape
        # one number from the generator, wherever it lives, and all that follows on the CPU
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        chance = Generator().manual_seed(int(seed))
        chosen = _uniform(batch, generator=chance) < self.p  # (B,)
        counts = torch.where(chosen, self.counts.draw(batch, chance), 1)  # (B,)
        sources: list[int] = []
        cells: list[Cell] = []
        for index, count in enumerate(counts.tolist()):
            sources += [index, *torch.randint(batch, (count - 1,), generator=chance).tolist()]
            cells += lay_out(count, (height, width), chance)
        canvases = torch.repeat_interleave(counts)  # (n,) of each cell
        tilings = _paint(images, sources, canvases.tolist(), cells)
        if targets is None:
            return tilings, None
        sizes = torch.tensor([[height, width]]).expand(len(cells), 2)
        which, boxes, labels = boxes_in_cells([targets[s] for s in sources], sizes, cells, self.min_side)
        kept = torch.bincount(canvases.to(which.device)[which], minlength=batch).tolist()
        followed = [Target(boxes=b, labels=c) for b, c in zip(torch.split(boxes, kept), torch.split(labels, kept))]
        return tilings, [t if n == 1 else f for n, t, f in zip(counts.tolist(), targets, followed)]


class MultiScale:
    """Resize the whole batch so that its longer side is a random multiple of ``stride``.

    Args:
        minimum, maximum: of the longer side, in pixels, both included. stride: of the network.

    The shorter side follows, rounded to the nearest multiple of the stride. Bilinear, anti-aliased.
    Raises InputError when no multiple lies between minimum and maximum.
    """

    def __init__(self, minimum: int, maximum: int, stride: int = 32) -> None:
        if stride < 1 or minimum < 1 or maximum // stride < -(-minimum // stride):
            raise InputError(
                f"MultiScale: expected a positive multiple of stride {stride} from minimum {minimum} to maximum {maximum}"
            )
        self.stride = stride
        self.low, self.high = -(-minimum // stride), maximum // stride

    def __call__(self, images: Tensor, targets: Sequence[Target] | None, generator: Generator) -> Augmented:
        height, width = images.shape[-2:]
        draw = torch.randint(self.low, self.high + 1, (), generator=generator, device=generator.device)
        factor = int(draw) * self.stride / max(height, width)
        size = [max(1, round(side * factor / self.stride)) * self.stride for side in (height, width)]
        if size == [height, width]:
            return images, None if targets is None else list(targets)
        scaled = resized(images, (size[0], size[1]))
        if targets is None:
            return scaled, None
        ratio = [size[1] / width, size[0] / height] * 2
        return scaled, [Target(boxes=t["boxes"] * t["boxes"].new_tensor(ratio), labels=t["labels"]) for t in targets]


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) RGB in [0, 1] to hue in turns [0, 1), saturation and value in [0, 1], (B, H, W) each (Smith 1978); greys have hue 0."""
    r, g, b = images.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    least = torch.finfo(images.dtype).tiny  # a division of 0 by it is 0
    divisor = chroma.clamp(min=least)
    of_green_or_blue = torch.where(value == g, (b - r) / divisor + 2, (r - g) / divisor + 4)
    sixths = torch.where(value == r, (g - b) / divisor, of_green_or_blue)
    return _turn(sixths / 6), chroma / value.clamp(min=least), value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of :func:`rgb_to_hsv`, (B, 3, H, W): v (1 - s (1 - x)), where x is 1 from a sixth of a turn before to a sixth after the colour, and falls to 0 in one more."""
    sixths = 6 * hue
    red = (sixths - 3).abs() - 1
    green, blue = (2 - (sixths - at).abs() for at in (2, 4))
    return torch.stack([value * (1 - saturation * (1 - x.clamp(0, 1))) for x in (red, green, blue)], 1)


def _turn(hue: Tensor) -> Tensor:
    """Modulo 1, at a third of the cost of ``%`` on a CPU."""
    return hue - hue.floor()


def _uniform(*shape: int, generator: Generator) -> Tensor:
    """U[0, 1) on the CPU, drawn where the generator lives."""
    return torch.rand(shape, generator=generator, device=generator.device).cpu()


def _paint(images: Tensor, sources: Sequence[int], canvases: Sequence[int], cells: Sequence[Cell]) -> Tensor:
    """Canvases like ``images``, of which cell i is image ``sources[i]`` on canvas ``canvases[i]``."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, cell in enumerate(cells):
        by_size[cell.height, cell.width].append(number)
    painted = torch.empty_like(images)
    for (height, width), numbers in by_size.items():
        used = sorted({sources[i] for i in numbers})
        small = resized(images[used], (height, width))  # each image once a size
        row = {source: i for i, source in enumerate(used)}
        for i in numbers:
            top, left = cells[i].top, cells[i].left
            painted[canvases[i], :, top : top + height, left : left + width] = small[row[sources[i]]]
    return painted


def _mirror(target: Target, width: int) -> Target:
    x1, y1, x2, y2 = target["boxes"].unbind(-1)  # (n,) each
    return Target(boxes=torch.stack([width - x2, y1, width - x1, y2], -1), labels=target["labels"])


def _keep_visible(boxes: Tensor, labels: Tensor, image_size: tuple[int, int], min_visible: float, min_side: float) -> Target:
    """Clip boxes, and drop those of which less than ``min_visible`` of the area or ``min_side`` pixels a side remain."""
    clipped = clip_xyxy(boxes, image_size)
    sides = clipped[:, 2:] - clipped[:, :2]
    keep = (sides.amin(-1) >= min_side) & (area_xyxy(clipped) >= min_visible * area_xyxy(boxes))
    return Target(boxes=clipped[keep], labels=labels[keep])


def _probability(key: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{key}: expected a number from 0 to 1, got {value}")
    return float(value)
