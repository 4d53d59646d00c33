"""Lay several images out as one, with their boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from detkd.structures import Target, join_targets

MOST = 25


class Cell(NamedTuple):
    """Where an image lies on the canvas, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def lay_out(n: int, image_size: tuple[int, int], generator: Generator) -> list[Cell]:
    """Divide a canvas among ``n`` images: rows of nearly equal counts that fill it without gaps.

    Args:
        n: from 1 to 25. image_size: (height, width) of the canvas in pixels.
        generator: on the CPU. It draws whether the lines are rows or columns, each with probability 1/2; which lines have one
            cell more, where the counts cannot be equal (3 is 1 + 2 or 2 + 1); and the order of the cells returned.

    The number of lines makes cells as nearly square as one number of lines can: round(sqrt(n height / width)) rows, or
    round(sqrt(n width / height)) columns. On a square canvas no cell's sides differ by more than a factor 2, rounding aside. All
    lines are equally thick and all cells of a line equally long, up to one pixel. One image has the whole canvas.

    Source: DIODE tiles up to 25 images (Chawla et al., WACV 2021) without giving the layout; this one is ours.

    Raises ValueError for ``n`` out of range and for a canvas on which a cell would have no pixel.
    """
    height, width = image_size
    if not 1 <= n <= MOST:
        raise ValueError(f"expected 1 to {MOST} images on a canvas, got {n}")
    if min(image_size) < 1:
        raise ValueError(f"expected a canvas of positive height and width, got {image_size}")
    columns = bool(torch.rand((), generator=generator) < 0.5)
    length, thickness = (height, width) if columns else (width, height)  # along a line, and across all of them
    lines = min(n, max(1, round(math.sqrt(n * thickness / length))))
    if lines > thickness or -(-n // lines) > length:
        raise ValueError(f"expected a canvas on which each of {n} images has a pixel, got {height} x {width} pixels")
    one_more = set(torch.randperm(lines, generator=generator)[: n % lines].tolist())
    cells = []
    for line, (start, extent) in enumerate(_divide(thickness, lines)):
        for offset, side in _divide(length, n // lines + (line in one_more)):
            cells.append(Cell(offset, start, side, extent) if columns else Cell(start, offset, extent, side))
    return [cells[i] for i in torch.randperm(n, generator=generator).tolist()]


def tile(
    images: Sequence[Tensor],
    targets: Sequence[Target],
    image_size: tuple[int, int],
    generator: Generator,
    min_side: float = 2.0,
) -> tuple[Tensor, Target]:
    """Lay 1 to 25 images out on one canvas, as :func:`lay_out` divides it.

    Args:
        images: (3, h, w) each, of any sizes, all uint8 or all float in [0, 1]. targets: one an image, boxes xyxy in its pixels.
        image_size: (height, width) of the canvas in pixels. generator: on the CPU.
        min_side: a box that is less than this many pixels wide or high on the canvas is dropped; so is one without area.

    Returns:
        (3, height, width) of the images' type, and the target: boxes in pixels of the canvas, in the order of the images.

    Each image is resized to its whole cell (bilinear, anti-aliased), so its aspect ratio changes to that of the cell.
    """
    cells = lay_out(len(images), image_size, generator)
    canvas = images[0].new_empty(3, *image_size)
    for image, (top, left, height, width) in zip(images, cells, strict=True):
        canvas[:, top : top + height, left : left + width] = resized(image[None], (height, width))[0]
    sizes = torch.tensor([image.shape[-2:] for image in images])  # (n, 2)
    _, boxes, labels = boxes_in_cells(targets, sizes, cells, min_side)
    return canvas, Target(boxes=boxes, labels=labels)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, h, w), uint8 or float in [0, 1], to ``size`` (height, width): bilinear, anti-aliased; as they are where it is theirs."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    scaled = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return scaled.clamp(0, 1) if scaled.is_floating_point() else scaled


def boxes_in_cells(
    targets: Sequence[Target], sizes: Tensor, cells: Sequence[Cell], min_side: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the boxes of images along to their cells, and drop those that become too small.

    Args:
        targets: of n images, boxes xyxy in pixels of each. sizes: (n, 2) height and width of each. cells: one for each.
        min_side: in pixels of the canvas; a box less wide or less high is dropped, and so is one without area.

    Returns:
        Of the k boxes kept, in order: the image (k,) int64, the box (k, 4) xyxy in pixels of the canvas, inside its cell, and the
        label (k,).
    """
    image, boxes, labels = join_targets(targets)
    top, left, height, width = torch.tensor(cells).to(boxes)[image].unbind(-1)  # (m,) each
    low, extent = torch.stack([left, top] * 2, -1), torch.stack([width, height] * 2, -1)  # (m, 4)
    scale = extent / sizes.to(boxes)[image].flip(-1).repeat(1, 2)
    # a box reaches over its image's border by rounding alone
    placed = torch.minimum(torch.maximum(boxes * scale + low, low), low + extent)
    sides = (placed[:, 2:] - placed[:, :2]).amin(-1)
    keep = (sides >= min_side) & (sides > 0)
    return image[keep], placed[keep], labels[keep]


def _divide(length: int, parts: int) -> list[tuple[int, int]]:
    """(start, extent) of nearly equal parts of whole pixels."""
    borders = [i * length // parts for i in range(parts + 1)]
    return [(a, b - a) for a, b in pairwise(borders)]
