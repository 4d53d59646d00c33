"""Box functions against known values and loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkd.boxes import (
    area_xyxy,
    clip_xyxy,
    cxcywh_to_xyxy,
    iou_wh,
    iou_xyxy,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

BOX = torch.tensor([[10.0, 20.0, 40.0, 30.0]])
side = st.floats(-500, 500, width=32)
boxes_xyxy = st.lists(
    st.tuples(side, side, st.floats(0, 300, width=32), st.floats(0, 300, width=32)), min_size=1, max_size=5
).map(lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows]))


def test_known_values() -> None:
    assert xyxy_to_xywh(BOX).tolist() == [[10, 20, 30, 10]]
    assert xyxy_to_cxcywh(BOX).tolist() == [[25, 25, 30, 10]]
    assert area_xyxy(BOX).tolist() == [300]


@given(boxes_xyxy)
@settings(max_examples=50, deadline=None, database=None)
def test_formats_come_back(boxes: Tensor) -> None:
    torch.testing.assert_close(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 4), (2, 3, 4)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    boxes = torch.rand(*shape)
    for convert in (xywh_to_xyxy, xyxy_to_xywh, cxcywh_to_xyxy, xyxy_to_cxcywh):
        assert convert(boxes).shape == shape
    assert area_xyxy(boxes).shape == shape[:-1]
    assert clip_xyxy(boxes, (8, 8)).shape == shape


def test_negative_extents_have_no_area() -> None:
    boxes = torch.tensor([[5.0, 5, 1, 9], [5, 5, 1, 1], [3, 3, 3, 9]])
    assert area_xyxy(boxes).tolist() == [0, 0, 0]


def test_clip_is_to_height_and_width() -> None:
    boxes = torch.tensor([[-5.0, -6, 70, 80], [10, 20, 30, 40], [90, 90, 99, 99]])
    assert clip_xyxy(boxes, (48, 64)).tolist() == [[0, 0, 64, 48], [10, 20, 30, 40], [64, 48, 64, 48]]


@given(boxes_xyxy)
@settings(max_examples=50, deadline=None, database=None)
def test_clipped_boxes_are_inside_and_no_larger(boxes: Tensor) -> None:
    clipped = clip_xyxy(boxes, (100, 50))
    assert (clipped >= 0).all()
    assert (clipped <= torch.tensor([50, 100, 50, 100])).all()
    assert (area_xyxy(clipped) <= area_xyxy(boxes) * (1 + 1e-4) + 1e-2).all()
    assert torch.equal(clip_xyxy(clipped, (100, 50)), clipped)


def test_gradient_of_conversions() -> None:
    box = BOX.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: cxcywh_to_xyxy(xyxy_to_cxcywh(b)) + xywh_to_xyxy(xyxy_to_xywh(b)), box)


def test_iou_of_sizes() -> None:
    a, b = torch.tensor([[2.0, 4.0], [3.0, 3.0]]), torch.tensor([[4.0, 2.0], [2.0, 4.0], [30.0, 30.0]])
    expected = [[4 / 12, 1.0, 8 / 900], [6 / 11, 6 / 11, 9 / 900]]
    torch.testing.assert_close(iou_wh(a, b), torch.tensor(expected))
    assert iou_wh(a[:0], b).shape == (0, 3)


def test_iou_of_boxes_is_that_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, extent = torch.rand(2, 6, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + extent], 1)
    a, b = boxes[:2], boxes[2:]
    for i, (ax1, ay1, ax2, ay2) in enumerate(a.tolist()):
        for j, (bx1, by1, bx2, by2) in enumerate(b.tolist()):
            inter = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
            assert iou_xyxy(a, b)[i, j].item() == pytest.approx(inter / union, abs=1e-5)
