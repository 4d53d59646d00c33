from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detkd.losses.regions import object_masks, strides_of
from detkd.structures import Prediction, Target

SIZES, STRIDES = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)], [4, 8, 16, 32, 64]


def target(*boxes: tuple[float, float, float, float]) -> Target:
    return Target(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.zeros(len(boxes), dtype=torch.int64))


def reference(targets: list[Target], sizes: list[tuple[int, int]], strides: list[int], side: float) -> list[np.ndarray]:
    """By loops over boxes and cells."""
    masks = [np.zeros((len(targets), h, w), bool) for h, w in sizes]
    for image, of_image in enumerate(targets):
        for x1, y1, x2, y2 in of_image["boxes"].double().tolist():
            if x2 <= x1 or y2 <= y1:
                continue
            power = 2 + math.floor(math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / side))
            level = min(range(len(strides)), key=lambda i: abs(math.log2(strides[i]) - power))
            (h, w), s = sizes[level], strides[level]
            for row in range(h):
                for column in range(w):
                    if column * s < x2 and (column + 1) * s > x1 and row * s < y2 and (row + 1) * s > y1:
                        masks[level][image, row, column] = True
    return masks


@pytest.mark.parametrize("side", [56.0, 12.0])
@pytest.mark.parametrize("first", [0, 1])
def test_equals_loops(side: float, first: int) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for n in (9, 0, 17):
        corner = torch.rand(n, 2, generator=generator) * torch.tensor([120.0, 90.0])
        boxes = torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * 90], 1)
        targets.append(target(*boxes.clamp(max=96).tolist()))  # some have lost their width
    found = object_masks(targets, SIZES[first:], STRIDES[first:], side)
    for ours, theirs in zip(found, reference(targets, SIZES[first:], STRIDES[first:], side), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
    assert sum(int(m.any()) for m in found) > (side < 56)


def test_a_box_marks_one_level_by_its_size() -> None:
    sides = {55: 0, 56: 0, 111: 0, 112: 1, 223: 1, 224: 2, 447: 2, 448: 3, 2000: 4}
    sizes = [(512, 512), (256, 256), (128, 128), (64, 64), (32, 32)]
    for side, level in sides.items():
        masks = object_masks([target((0, 0, side, side))], sizes, STRIDES)
        assert [bool(m.any()) for m in masks] == [i == level for i in range(5)], side
        assert int(masks[level].sum()) == math.ceil(side / STRIDES[level]) ** 2


def test_a_tiny_box_marks_one_cell_and_one_without_area_none() -> None:
    tiny, flat, outside = (5.0, 5.0, 5.1, 5.1), (5.0, 5.0, 5.0, 9.0), (127.0, 95.0, 130.0, 99.0)
    (mask,) = object_masks([target(tiny), target(flat), target(outside), target()], SIZES[:1], STRIDES[:1])
    assert mask.sum((1, 2)).tolist() == [1, 0, 1, 0]
    assert mask[0, 1, 1]
    assert mask[2, 23, 31]
    assert mask.dtype == torch.bool


def test_no_boxes_at_all() -> None:
    assert not any(m.any() for m in object_masks([target(), target()], SIZES, STRIDES))


def test_two_levels_of_one_stride_give_the_finer() -> None:
    masks = object_masks([target((0, 0, 60, 60))], [(3, 4), (3, 4), (2, 2)], [32, 32, 64])
    assert [bool(m.any()) for m in masks] == [True, False, False]


def test_strides_of_neck_and_backbone() -> None:
    maps = {name: torch.zeros(1, 1, 2, 2) for name in ("c3", "c4", "c5", "p3", "p4", "p5", "p6", "p7")}
    prediction = Prediction({}, ((2, 2, 1),) * 5, (8, 16, 32, 64, 128), maps, (32, 32))
    assert strides_of(prediction, ["p3", "p7", "c4", "c5"]) == [8, 128, 16, 32]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("corner", range(4))
def test_boxes_that_are_no_numbers_mark_nothing(bad: float, corner: int) -> None:
    box = [8.0, 8.0, 40.0, 40.0]
    good, broken = target((8, 8, 40, 40)), target((*box[:corner], bad, *box[corner + 1 :]), (8, 8, 40, 40))
    for ours, theirs in zip(object_masks([broken], SIZES, STRIDES), object_masks([good], SIZES, STRIDES), strict=True):
        assert torch.equal(ours, theirs)
