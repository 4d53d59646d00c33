"""Task-aligned assignment: which sites are to find which box, and with what score.

Source: Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021, section 3.2: alignment t = s^alpha * u^beta
(equation 2), the best k sites inside a box are its own, and their scores are t scaled so that the best one's is the best overlap.
As in YOLOv8 the overlap u is complete IoU (Zheng et al., 2020), not below 0.

Departure: a box too small to have the centre of any cell inside takes the nearest one, instead of none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkd.detectors.ultralytics.iou import complete_iou

EPS = 1e-9


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    centres: Tensor,
    target_boxes: Tensor,
    target_labels: Tensor,
    exists: Tensor,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> tuple[Tensor, Tensor]:
    """Assign each site to a box or to none.

    Args:
        scores: (B, N, C) class probabilities. boxes: (B, N, 4) predicted. centres: (N, 2) of the sites' cells, xy.
        target_boxes: (B, M, 4) with area, padded. target_labels: (B, M). exists: (B, M) bool, False where padded.
        All boxes xyxy in pixels.

    Returns index (B, N) int64 of the target that a site is to find, and its target score (B, N) in [0, 1], 0 where it is to find none.
    """
    count = scores.shape[1]
    overlap = complete_iou(boxes[:, None], target_boxes[:, :, None]).clamp(min=0)  # (B, M, N)
    score = scores.transpose(1, 2).gather(1, target_labels[:, :, None].expand(-1, -1, count))  # (B, M, N)
    allowed = inside(centres, target_boxes) & exists[:, :, None]
    overlap = overlap * allowed
    alignment = score.pow(alpha) * overlap.pow(beta) * allowed

    best = alignment.topk(min(topk, count), dim=-1).indices
    chosen = torch.zeros_like(allowed).scatter_(-1, best, True) & allowed
    # A site is one box's alone: of several that chose it, it goes to the box that it overlaps most.
    owner = torch.zeros_like(allowed).scatter_(1, overlap.argmax(dim=1, keepdim=True), True)
    chosen = torch.where((chosen.sum(dim=1, keepdim=True) > 1), owner, chosen)

    alignment, overlap = alignment * chosen, overlap * chosen
    scaled = alignment * overlap.amax(-1, keepdim=True) / (alignment.amax(-1, keepdim=True) + EPS)  # (B, M, N)
    return chosen.int().argmax(dim=1), scaled.amax(dim=1)


def inside(centres: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(N, 2) points and (B, M, 4) boxes to (B, M, N): which points lie inside; for a box without any, the nearest one."""
    to_sides = torch.cat([centres - boxes_xyxy[:, :, None, :2], boxes_xyxy[:, :, None, 2:] - centres], dim=-1)  # (B, M, N, 4)
    within = to_sides.amin(-1) > EPS
    middle = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
    distance = (centres - middle[:, :, None]).square().sum(-1)  # (B, M, N)
    nearest = torch.zeros_like(within).scatter_(-1, distance.argmin(-1, keepdim=True), True)
    return torch.where(within.any(-1, keepdim=True), within, nearest)
