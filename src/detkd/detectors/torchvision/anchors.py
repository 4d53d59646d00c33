"""Anchors as MMDetection has them: sides are not rounded, and neighbours are a stride apart whatever the size of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ExactAnchors(nn.Module):
    """Stands in for torchvision's AnchorGenerator, which rounds sides to whole pixels and divides the image by the map for a stride.

    Args:
        sizes: sides in pixels of square anchors, a group a level. ratios: height to width, shared by the levels.
        strides: pixels a cell of each level.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__()
        self.sizes, self.ratios, self.strides = tuple(map(tuple, sizes)), tuple(ratios), tuple(strides)

    def num_anchors_per_location(self) -> list[int]:
        """Anchors a site of each level."""
        return [len(sides) * len(self.ratios) for sides in self.sizes]

    def forward(self, images: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        """(N, 4) xyxy anchors of each image: row by row, site by site, at a site ratio by ratio, and sizes within a ratio.

        images: torchvision's ImageList. maps: (B, C, H, W) a level.
        """
        levels = [self._level(m, sides, stride) for m, sides, stride in zip(maps, self.sizes, self.strides, strict=True)]
        return [torch.cat(levels)] * len(images.image_sizes)

    def _level(self, values: Tensor, sides: Sequence[float], stride: int) -> Tensor:
        side, root = values.new_tensor(sides), values.new_tensor(self.ratios).sqrt()
        width, height = (side / root[:, None]).flatten(), (side * root[:, None]).flatten()  # (A,), ratios outside
        at_origin = torch.stack([-width, -height, width, height], dim=1) / 2  # (A, 4)
        rows, columns = (torch.arange(n, device=values.device) * stride for n in values.shape[-2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corner = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (H*W, 1, 4)
        return (corner + at_origin).reshape(-1, 4)  # (H*W*A, 4)
