"""Anchors of images of any size: spaced as torchvision's are, or as MMDetection's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

_PADDED = 32  # torchvision pads images to a multiple of it


class PaddedAnchors(AnchorGenerator):
    """torchvision's anchors, spaced as on the image padded to a multiple of 32 px.

    torchvision's own divide the image by the map for their distance, which is right because its transform pads. Our images are of any size:
    a row of 1333 px and 334 cells of stride 4 would get anchors 3 px apart. Where sides are multiples of 32 these are torchvision's.

    Args:
        sizes, ratios: of anchors, a tuple a level. strides: pixels a cell of each level.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], ratios: Sequence[Sequence[float]], strides: Sequence[int]) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, ratios)))
        self.strides = tuple(strides)

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        """(N, 4) xyxy anchors of each image. image_list: torchvision's ImageList. feature_maps: (B, C, H, W) a level."""
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        height, width = image_list.tensors.shape[-2:]
        steps = zip(anchor_steps(height, self.strides), anchor_steps(width, self.strides), strict=True)
        distances = [[torch.tensor(step, device=first.device) for step in pair] for pair in steps]
        levels = self.grid_anchors([list(m.shape[-2:]) for m in feature_maps], distances)
        return [torch.cat(levels)] * len(image_list.image_sizes)


def anchor_steps(side: int, strides: Sequence[int]) -> list[int]:
    """Pixels between anchors along a side of an image, a level: the padded side over its cells.

    That is the stride up to 32; coarser levels halve the cells and round up, so that theirs may be a little less.
    """
    padded = -(-side // _PADDED) * _PADDED
    steps = []
    for stride in strides:
        cells = padded // min(stride, _PADDED)
        for _ in range((stride // _PADDED).bit_length() - 1):
            cells = -(-cells // 2)
        steps.append(padded // cells)
    return steps


class ExactAnchors(nn.Module):
    """MMDetection's anchors: sides are not rounded to whole pixels, and neighbours are a stride apart at all levels.

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
