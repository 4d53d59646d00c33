"""Boxes as distributions: each side's distance from the centre of its cell is the mean of a softmax over bins.

Source: Li et al., "Generalized Focal Loss", NeurIPS 2020, section 3.2 (equations 4 to 6). Distances are in cells, bins are 0, 1, ... cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def site_grid(sizes: Sequence[tuple[int, int, int]], strides: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cell centres (N, 2) xy in pixels and strides (N, 1) in pixels of all levels, float32, row by row, fine level first."""
    centres, cells = [], []
    for (height, width, _), stride in zip(sizes, strides, strict=True):
        ys, xs = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        centre = (torch.stack([xs, ys], dim=-1).reshape(-1, 2) + 0.5) * stride  # (H*W, 2)
        centres.append(centre)
        cells.append(torch.full_like(centre[:, :1], stride))
    return torch.cat(centres), torch.cat(cells)


def decode_boxes(raw_box: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """(..., N, 4*bins) raw distributions of left, top, right, bottom to (..., N, 4) boxes xyxy in pixels (equation 5)."""
    logits = raw_box.reshape(*raw_box.shape[:-1], 4, -1)  # (..., N, 4, bins)
    bins = torch.arange(logits.shape[-1], device=raw_box.device, dtype=raw_box.dtype)
    distances = (logits.softmax(-1) @ bins) * strides  # (..., N, 4) pixels
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)


def wanted_distances(boxes_xyxy: Tensor, centres: Tensor, strides: Tensor, bins: int) -> Tensor:
    """(..., N, 4) boxes in pixels to distances in cells, limited to just below the last bin, so that there is one on each side."""
    distances = torch.cat([centres - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - centres], dim=-1) / strides
    return distances.clamp(0, bins - 1 - 0.01)


def distribution_loss(raw_box: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy between the bins left and right of the wanted distance, weighted by nearness (equation 6), mean of four sides.

    raw_box: (..., 4*bins). distances: (..., 4) in cells, 0 <= d < bins - 1. Returns (...).
    """
    log_p = raw_box.reshape(*raw_box.shape[:-1], 4, -1).log_softmax(-1)  # (..., 4, bins)
    left = distances.floor()
    nearness = torch.stack([left + 1 - distances, distances - left], dim=-1)  # (..., 4, 2)
    index = torch.stack([left, left + 1], dim=-1).long()
    return -(log_p.gather(-1, index) * nearness).sum(-1).mean(-1)
