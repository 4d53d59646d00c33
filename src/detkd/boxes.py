"""Pure functions on boxes. Names carry the formats: xyxy, xywh (corner and size), cxcywh; pixels unless said otherwise."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.ops import boxes as box_ops


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """(..., 4) corner and size to corners."""
    return box_convert(boxes_xywh, "xywh", "xyxy")


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) corners to corner and size."""
    return box_convert(boxes_xyxy, "xyxy", "xywh")


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) centre and size to corners."""
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) corners to centre and size."""
    return box_convert(boxes_xyxy, "xyxy", "cxcywh")


def area_xyxy(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) to (...): area in square pixels; negative extents count as zero."""
    extent = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return extent[..., 0] * extent[..., 1]


def clip_xyxy(boxes_xyxy: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip (..., 4) boxes to an image of (height, width)."""
    height, width = image_size
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0), limit)


def iou_wh(wh_a: Tensor, wh_b: Tensor) -> Tensor:
    """IoU of sizes laid on one corner: (n, 2) and (m, 2) to (n, m)."""
    inter = torch.minimum(wh_a[:, None], wh_b[None]).prod(-1)  # (n, m)
    return inter / (wh_a.prod(-1)[:, None] + wh_b.prod(-1)[None] - inter)


def iou_xyxy(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> Tensor:
    """Pairwise IoU: (n, 4) and (m, 4) to (n, m)."""
    return box_ops.box_iou(boxes_a_xyxy, boxes_b_xyxy)
