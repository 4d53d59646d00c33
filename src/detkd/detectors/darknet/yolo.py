"""The YOLOv3 head: raw maps to boxes, and the loss of the DIODE teachers.

Sources: Redmon and Farhadi, "YOLOv3", 2018, section 2.1 (boxes); the loss as in DIODE's released teachers (Chawla et al.,
WACV 2021): GIoU for boxes, binary cross-entropy for objectness and classes, targets matched to every anchor of like size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from detkd.boxes import cxcywh_to_xyxy, iou_wh, xyxy_to_cxcywh
from detkd.structures import Target, join_targets

# exp() of a raw size beyond this is no box any more, only an overflow.
MAX_LOG_SIZE = 8.0


def sites(raw_map: Tensor, num_anchors: int) -> Tensor:
    """(B, A*(5+C), H, W) head map to (B, H*W*A, 5+C): x, y, w, h, objectness, classes of each site."""
    batch, channels, height, width = raw_map.shape
    raw_map = raw_map.view(batch, num_anchors, channels // num_anchors, height, width)
    return raw_map.permute(0, 3, 4, 1, 2).reshape(batch, height * width * num_anchors, -1)  # (B, H*W*A, 5+C)


def site_grid(size: tuple[int, int, int], anchors_wh: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Geometry of one level's sites, in the order of :func:`sites`.

    Args:
        size: (height, width, anchors) of the level. anchors_wh: (A, 2) pixels. image_size: (height, width) pixels.

    Returns cell corner xy (N, 2) in pixels, cell size xy (2,) in pixels, anchor wh (N, 2) in pixels.
    """
    height, width, count = size
    cell = anchors_wh.new_tensor([image_size[1] / width, image_size[0] / height])
    ys, xs = torch.meshgrid(
        torch.arange(height, device=anchors_wh.device), torch.arange(width, device=anchors_wh.device), indexing="ij"
    )
    corner = torch.stack([xs, ys], dim=-1).to(anchors_wh.dtype) * cell  # (H, W, 2)
    corner = corner[:, :, None].expand(height, width, count, 2).reshape(-1, 2)  # (N, 2)
    return corner, cell, anchors_wh.expand(height, width, count, 2).reshape(-1, 2)


def decode_boxes(raw_box: Tensor, corner_xy: Tensor, cell: Tensor, anchor_wh: Tensor, scale_x_y: float) -> Tensor:
    """Raw (..., 4) of sites to boxes xyxy in pixels.

    Centre = cell corner + cell * (sigmoid(t) * s - (s - 1) / 2), with s = scale_x_y (YOLOv4; 1 in YOLOv3);
    size = anchor * exp(t).
    """
    offset = raw_box[..., :2].sigmoid() * scale_x_y - (scale_x_y - 1) / 2
    centre = corner_xy + cell * offset
    size = anchor_wh * raw_box[..., 2:].clamp(max=MAX_LOG_SIZE).exp()
    return cxcywh_to_xyxy(torch.cat([centre, size], dim=-1))


def match_anchors(boxes_wh: Tensor, anchors_wh: Sequence[Tensor], threshold: float) -> list[Tensor]:
    """Which anchors of each level a box is matched to: one (n, A) bool a level.

    Every anchor whose width-height IoU with the box exceeds ``threshold``. A departure from the released loss, where
    a box unlike all anchors is never learnt: such a box gets its best one. Boxes without area match nothing.
    """
    ious = [iou_wh(boxes_wh, wh) for wh in anchors_wh]
    joined = torch.cat(ious, dim=1)  # (n, all anchors)
    best = joined == joined.amax(dim=1, keepdim=True)
    matched = (joined > threshold) | best
    matched &= (boxes_wh > 0).all(dim=1, keepdim=True)
    return list(torch.split(matched, [len(wh) for wh in anchors_wh], dim=1))


def yolo_loss(
    levels: Sequence[Tensor],
    sizes: Sequence[tuple[int, int, int]],
    anchors_wh: Sequence[Tensor],
    scales_x_y: Sequence[float],
    targets: Sequence[Target],
    image_size: tuple[int, int],
    iou_threshold: float,
) -> dict[str, Tensor]:
    """The loss parts before gains: box, obj, cls, each a sum over levels of means over the level.

    Args:
        levels: (B, N, 5+C) raw sites of each level. sizes: (height, width, anchors) of each level.
        anchors_wh: (A, 2) pixels of each level. scales_x_y: of each level. targets: boxes xyxy in pixels of image_size.
        iou_threshold: width-height IoU above which an anchor takes part.

    box: mean of 1 - GIoU over matched (target, anchor) pairs. cls: mean binary cross-entropy over pairs and classes.
    obj: mean binary cross-entropy over all sites; 1 at matched sites, 0 elsewhere. Dense in (target, anchor), with
    weights in place of selections, so that nothing waits for the device. Without boxes, box and cls are 0.
    """
    image, boxes, labels = join_targets(targets)
    boxes = boxes.float()
    cxcywh = xyxy_to_cxcywh(boxes)
    matches = match_anchors(cxcywh[:, 2:], anchors_wh, iou_threshold)
    zero = levels[0].new_zeros((), dtype=torch.float32)
    box_loss, obj_loss, cls_loss = zero, zero, zero
    for raw, size, wh, scale, match in zip(levels, sizes, anchors_wh, scales_x_y, matches, strict=True):
        raw = raw.float()
        height, width, count = size
        corner, cell, anchor = site_grid(size, wh, image_size)
        column = (cxcywh[:, 0] / cell[0]).long().clamp(0, width - 1)  # (n,)
        row = (cxcywh[:, 1] / cell[1]).long().clamp(0, height - 1)
        site = (row * width + column)[:, None] * count + torch.arange(count, device=raw.device)  # (n, A)
        weight = match.to(raw.dtype)
        total = weight.sum().clamp(min=1)

        target_obj = torch.zeros_like(raw[..., 4])  # (B, N)
        flat_site = (image[:, None] * raw.shape[1] + site).flatten()
        target_obj.view(-1).scatter_reduce_(0, flat_site, weight.flatten(), reduce="amax")
        obj_loss = obj_loss + F.binary_cross_entropy_with_logits(raw[..., 4], target_obj)

        chosen = raw[image[:, None].expand_as(site), site]  # (n, A, 5+C)
        predicted = decode_boxes(chosen[..., :4], corner[site], cell, anchor[site], scale)
        wanted = boxes[:, None].expand_as(predicted)
        giou = generalized_box_iou_loss(predicted.flatten(0, 1), wanted.flatten(0, 1)).view_as(weight)
        box_loss = box_loss + (giou * weight).sum() / total

        classes = chosen.shape[-1] - 5
        one_hot = F.one_hot(labels, classes).to(raw.dtype)[:, None].expand(-1, count, -1)  # (n, A, C)
        cross_entropy = F.binary_cross_entropy_with_logits(chosen[..., 5:], one_hot, reduction="none").mean(-1)
        cls_loss = cls_loss + (cross_entropy * weight).sum() / total
    return {"box": box_loss, "obj": obj_loss, "cls": cls_loss}
