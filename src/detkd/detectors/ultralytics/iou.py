"""Complete IoU: overlap less the distance of the centres and the difference of the ratios of sides.

Source: Zheng et al., "Distance-IoU Loss", AAAI 2020, equations 8 to 11. torchvision's ``complete_box_iou_loss`` is the same, but does not
broadcast, waits for the device, and has no value for a box without height.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detkd.boxes import area_xyxy

EPS = 1e-7


def complete_iou(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> Tensor:
    """(..., 4) and (..., 4) that broadcast to (...): at most 1, below 0 where boxes are far apart. Finite for boxes without area."""
    top_left = torch.maximum(boxes_a_xyxy[..., :2], boxes_b_xyxy[..., :2])
    bottom_right = torch.minimum(boxes_a_xyxy[..., 2:], boxes_b_xyxy[..., 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(-1)
    iou = shared / (area_xyxy(boxes_a_xyxy) + area_xyxy(boxes_b_xyxy) - shared + EPS)

    outer = torch.maximum(boxes_a_xyxy[..., 2:], boxes_b_xyxy[..., 2:]) - torch.minimum(
        boxes_a_xyxy[..., :2], boxes_b_xyxy[..., :2]
    )
    apart = (boxes_a_xyxy[..., :2] + boxes_a_xyxy[..., 2:] - boxes_b_xyxy[..., :2] - boxes_b_xyxy[..., 2:]) / 2
    distance = apart.square().sum(-1) / (outer.square().sum(-1) + EPS)

    ratio = (4 / math.pi**2) * (_angle(boxes_a_xyxy) - _angle(boxes_b_xyxy)).square()
    with torch.no_grad():  # the factor has no gradient
        factor = ratio / (1 - iou + ratio + EPS)
    return iou - distance - factor * ratio


def _angle(boxes_xyxy: Tensor) -> Tensor:
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return torch.atan(sides[..., 0] / (sides[..., 1] + EPS))
