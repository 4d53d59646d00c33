"""The YOLO head and its loss against loops written from methods, one site at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detkd.detectors.darknet.yolo import decode_boxes, match_anchors, site_grid, sites, yolo_loss
from detkd.structures import Target

SIZE = (32, 48)  # (height, width): rows and columns must not be mixed up
LEVELS = ((4, 6, 2), (2, 3, 1))
ANCHORS = (((4.0, 6.0), (10.0, 8.0)), ((24.0, 20.0),))
SCALES = (1.0, 1.1)
CLASSES = 3
THRESHOLD = 0.225


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(x: float, y: float) -> float:
    return max(x, 0) - x * y + math.log1p(math.exp(-abs(x)))


def box_of(raw: Any, row: int, column: int, level: int, anchor: int) -> list[float]:
    """xyxy of one site: darknet's formula."""
    height, width, _ = LEVELS[level]
    cell_h, cell_w, s = SIZE[0] / height, SIZE[1] / width, SCALES[level]
    x = (column + sigmoid(raw[0]) * s - (s - 1) / 2) * cell_w
    y = (row + sigmoid(raw[1]) * s - (s - 1) / 2) * cell_h
    w, h = (side * math.exp(t) for side, t in zip(ANCHORS[level][anchor], raw[2:4]))
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def giou(a: Any, b: Any) -> float:
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def shape_iou(w: float, h: float, anchor: tuple[float, float]) -> float:
    inter = min(w, anchor[0]) * min(h, anchor[1])
    return inter / (w * h + anchor[0] * anchor[1] - inter)


def reference(levels: list[Tensor], targets: list[Target]) -> dict[str, float]:
    """methods 1.1: means a head, summed over heads."""
    total = {"box": 0.0, "obj": 0.0, "cls": 0.0}
    for level, (raw, (height, width, count)) in enumerate(zip(levels, LEVELS)):
        boxes, classes, positive = [], [], set()
        for image, target in enumerate(targets):
            for box, label in zip(target["boxes"].tolist(), target["labels"].tolist()):
                w, h = box[2] - box[0], box[3] - box[1]
                if w <= 0 or h <= 0:
                    continue
                best = max(shape_iou(w, h, a) for of_level in ANCHORS for a in of_level)
                column = min(int((box[0] + box[2]) / 2 / (SIZE[1] / width)), width - 1)
                row = min(int((box[1] + box[3]) / 2 / (SIZE[0] / height)), height - 1)
                for anchor in range(count):
                    iou = shape_iou(w, h, ANCHORS[level][anchor])
                    if iou > THRESHOLD or iou >= best - 1e-7:
                        site = (row * width + column) * count + anchor
                        values = raw[image, site].tolist()
                        positive.add((image, site))
                        boxes.append(1 - giou(box_of(values, row, column, level, anchor), box))
                        classes.append(sum(bce(v, float(c == label)) for c, v in enumerate(values[5:])) / CLASSES)
        objectness = [
            bce(raw[i, n, 4].item(), float((i, n) in positive)) for i in range(raw.shape[0]) for n in range(raw.shape[1])
        ]
        total["obj"] += sum(objectness) / len(objectness)
        if boxes:
            total["box"] += sum(boxes) / len(boxes)
            total["cls"] += sum(classes) / len(classes)
    return total


def raw_levels(batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, h * w * a, 5 + CLASSES, generator=generator).to(dtype) for h, w, a in LEVELS]


def loss(levels: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
    anchors = [torch.tensor(a) for a in ANCHORS]
    return yolo_loss(levels, LEVELS, anchors, SCALES, targets, SIZE, THRESHOLD)


def target(*rows: tuple[float, float, float, float, int]) -> Target:
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([row[4] for row in rows], dtype=torch.int64)}


CASES = {
    "one box": [target((3, 5, 13, 12, 1)), target()],
    "several, both images": [target((3, 5, 13, 12, 1), (20, 2, 44, 30, 2)), target((1, 1, 5, 7, 0))],
    "twice the same site": [target((3, 5, 13, 12, 1), (3, 5, 12, 12, 2)), target()],
    "centre on a cell's corner": [target((11, 4, 21, 12, 0)), target((12, 12, 20, 20, 2))],
    "edges on cell borders": [target((8, 8, 16, 16, 1)), target((0, 0, 8, 8, 1), (40, 24, 48, 32, 0))],
    "the whole image": [target((0, 0, 48, 32, 2)), target()],
    "centre on the far corner": [target((44, 28, 52, 36, 0)), target()],
    "unlike every anchor": [target((0, 10, 47, 11, 1)), target((5, 5, 5.5, 5.5, 0))],
    "without area": [target((9, 9, 9, 20, 1), (3, 5, 13, 12, 1)), target((48, 32, 48, 32, 0))],
    "empty": [target(), target()],
}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_that_of_a_loop(name: str) -> None:
    levels = raw_levels()
    found, expected = loss(levels, CASES[name]), reference(levels, CASES[name])
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_empty_targets_leave_objectness_alone() -> None:
    levels = [level.requires_grad_() for level in raw_levels()]
    found = loss(levels, CASES["empty"])
    assert found["box"].item() == found["cls"].item() == 0
    gradient = torch.autograd.grad(sum(found.values()), levels)
    assert all(torch.isfinite(g).all() and (g[..., :4] == 0).all() and (g[..., 5:] == 0).all() for g in gradient)
    assert all((g[..., 4] > 0).all() for g in gradient)


def test_gradient_by_finite_differences() -> None:
    levels = raw_levels()
    step, targets = 1e-2, CASES["several, both images"]
    leaves = [level.clone().requires_grad_() for level in levels]
    gradients = torch.autograd.grad(sum(loss(leaves, targets).values()), leaves)
    chosen = [(k, *divmod(int(i), g.shape[-1])) for k, g in enumerate(gradients) for i in g[0].abs().flatten().topk(12).indices]
    for level, site, channel in chosen:
        values = []
        for sign in (-1, 1):
            moved = [r.clone() for r in levels]
            moved[level][0, site, channel] += sign * step
            values.append(sum(reference(moved, targets).values()))
        numeric = (values[1] - values[0]) / (2 * step)
        assert gradients[level][0, site, channel].item() == pytest.approx(numeric, rel=1e-2, abs=1e-4)


def test_loss_is_float32_whatever_comes_in() -> None:
    exact = loss(raw_levels(), CASES["one box"])
    for dtype in (torch.bfloat16, torch.float16):
        found = loss(raw_levels(dtype=dtype), CASES["one box"])
        assert all(v.dtype == torch.float32 for v in found.values())
        assert all(found[k].item() == pytest.approx(exact[k].item(), rel=0.05) for k in found)


def test_huge_raw_values_stay_finite() -> None:
    levels = [(1000 * level).requires_grad_() for level in raw_levels()]
    total = sum(loss(levels, CASES["several, both images"]).values())
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(total, levels))


def test_perfect_prediction_costs_next_to_nothing() -> None:
    levels = raw_levels(1)
    for level in levels:
        level.zero_()
        level[..., 4:] = -30
    # centre of cell (row 1, column 2) at stride 8, exactly anchor 1 of the fine level; no other anchor is like it
    levels[0][0, (1 * 6 + 2) * 2 + 1, 4] = 30
    levels[0][0, (1 * 6 + 2) * 2 + 1, 5 + 2] = 30
    found = yolo_loss(
        levels, LEVELS, [torch.tensor(a) for a in ANCHORS], (1.0, 1.0), [target((15, 8, 25, 16, 2))], SIZE, iou_threshold=0.5
    )
    assert all(v.item() == pytest.approx(0, abs=1e-6) for v in found.values())


def test_sites_go_row_by_row_then_anchor() -> None:
    raw = torch.arange(2 * 14 * 3 * 4.0).view(2, 14, 3, 4)
    flat = sites(raw, 2)
    assert flat.shape == (2, 24, 7)
    for b, row, column, anchor, channel in [(0, 0, 0, 0, 0), (1, 2, 3, 1, 6), (0, 1, 2, 1, 4), (1, 0, 3, 0, 5)]:
        assert flat[b, (row * 4 + column) * 2 + anchor, channel] == raw[b, anchor * 7 + channel, row, column]


@pytest.mark.parametrize("level", [0, 1])
def test_decode_is_that_of_a_loop(level: int) -> None:
    raw, (height, width, count) = raw_levels()[level], LEVELS[level]
    corner, cell, anchor_wh = site_grid(LEVELS[level], torch.tensor(ANCHORS[level]), SIZE)
    boxes = decode_boxes(raw[..., :4], corner, cell, anchor_wh, SCALES[level])
    for image in range(2):
        for row in range(height):
            for column in range(width):
                for anchor in range(count):
                    n = (row * width + column) * count + anchor
                    expected = box_of(raw[image, n].tolist(), row, column, level, anchor)
                    assert boxes[image, n].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_decode_gradient() -> None:
    raw = raw_levels(dtype=torch.float64)[1][..., :4].requires_grad_()
    geometry = [t.double() for t in site_grid(LEVELS[1], torch.tensor(ANCHORS[1]), SIZE)]
    assert torch.autograd.gradcheck(lambda r: decode_boxes(r, *geometry, 1.05), raw)


def test_match_anchors() -> None:
    anchors = [torch.tensor(a) for a in ANCHORS]
    fine, coarse = match_anchors(torch.tensor([[4.0, 6.0], [24.0, 20.0], [1.0, 400.0], [0.0, 8.0]]), anchors, THRESHOLD)
    assert fine.tolist() == [[True, True], [False, False], [False, False], [False, False]]
    assert coarse.tolist() == [[False], [True], [True], [False]]
    assert [m.shape for m in match_anchors(torch.zeros(0, 2), anchors, THRESHOLD)] == [(0, 2), (0, 1)]
