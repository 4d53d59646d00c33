"""torchvision's RoIAlign (He et al., ICCV 2017), with a faster way to its gradient on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import ops

# torchvision's gradient goes point by point on a CPU. Matrices that touch the whole map are faster up to many more cells than this.
_DENSE_CELLS = 4096


def roi_align(
    maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool = False
) -> Tensor:
    """Mean bilinear values of points in each bin of each box.

    Args:
        maps: (B, C, H, W). rois: (R, 5), image index, then xyxy in pixels; no gradient goes to them. size: (height, width) in bins.
        scale: cells a pixel. sampling_ratio: points a bin and side; 0: as many as it has cells. aligned: cell centres half a cell off.

    Returns:
        (R, C, height, width), torchvision's own values. On a CPU, for maps of up to 4096 cells, the gradient is a product of matrices: equal
        up to rounding, some ten times faster, and differentiable once.
    """
    dense = maps.device.type == "cpu" and maps.shape[-2] * maps.shape[-1] <= _DENSE_CELLS and sampling_ratio > 0
    if dense and maps.requires_grad and torch.is_grad_enabled():
        pooled: Tensor = _RoIAlign.apply(maps, rois, size, scale, sampling_ratio, aligned)
        return pooled
    return ops.roi_align(maps, rois, size, scale, sampling_ratio, aligned)


def bin_weights(low: Tensor, high: Tensor, bins: int, cells: int, scale: float, sampling_ratio: int, aligned: bool) -> Tensor:
    """How much each cell counts in each bin along one axis; RoIAlign is linear, and the product of its two axes.

    Args:
        low, high: (R,) ends of boxes in pixels. cells: of the map. Others as of :func:`roi_align`.

    Returns (R, bins, cells), means over a bin's points of their bilinear weights. Points more than a cell off the map count nothing.
    """
    length = (high - low) * scale
    start = low * scale - 0.5 if aligned else low * scale
    length = length if aligned else length.clamp(min=1.0)
    offsets = (torch.arange(bins * sampling_ratio, device=low.device, dtype=low.dtype) + 0.5) / sampling_ratio
    points = start[:, None] + offsets * (length / bins)[:, None]  # (R, bins * points)
    counts = (points >= -1) & (points <= cells)
    places = torch.arange(cells, device=low.device, dtype=low.dtype)
    weights = (1 - (points.clamp(0, cells - 1)[..., None] - places).abs()).clamp(min=0) * counts[..., None]
    return weights.view(len(low), bins, sampling_ratio, cells).mean(2)  # (R, bins * points, cells) -> (R, bins, cells)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
    ) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.settings = maps.shape, size, (scale, sampling_ratio, aligned)
        return ops.roi_align(maps, rois, size, scale, sampling_ratio, aligned)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (rois,) = ctx.saved_tensors
        (images, channels, height, width), (rows, columns), settings = ctx.settings
        rois = rois.to(gradient)
        down = bin_weights(rois[:, 2], rois[:, 4], rows, height, *settings)  # (R, rows, H)
        across = bin_weights(rois[:, 1], rois[:, 3], columns, width, *settings)  # (R, columns, W)
        lines = gradient.transpose(1, 2).flatten(1, 2) @ across  # (R, rows * C, columns) -> (R, rows * C, W)
        lines = lines.view(-1, rows, channels * width)
        out = gradient.new_empty(images, height, channels, width)
        for image in range(images):
            own = (rois[:, 0] == image).nonzero()[:, 0]
            of_rows = down[own].flatten(0, 1).T @ lines[own].flatten(0, 1)  # (H, r * rows) @ (r * rows, C * W)
            out[image] = of_rows.view(height, channels, width)
        return out.transpose(1, 2), None, None, None, None, None
