"""RoIAlign (He et al., ICCV 2017) from one level of a pyramid or from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align


class AlignedPooler(nn.Module):
    """RoIAlign with cell centres half a pixel off their corners, as MMDetection and Detectron2 have it; torchvision's pooler has not.

    Stands in for torchvision's MultiScaleRoIAlign. Every box is read from the level floor(4 + log2(side / 224)) (FPN paper, equation 1),
    at as many points a bin as it has cells.

    Args:
        output_size: (height, width) in bins. strides: pixels a cell of each map.
    """

    aligned = True
    sampling_ratio = 0  # as many points as a bin has cells

    def __init__(self, output_size: tuple[int, int], strides: Sequence[int]) -> None:
        super().__init__()
        self.output_size, self.strides = output_size, tuple(strides)

    def forward(self, maps: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Maps (B, C, H, W), fine first, and boxes (r, 4) an image, xyxy in pixels, R in all, to (R, C, h, w)."""
        values, every = list(maps.values()), torch.cat(list(boxes))
        index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        rois = torch.cat([index, every], dim=1)  # (R, 5)
        side = ((every[:, 2] - every[:, 0]) * (every[:, 3] - every[:, 1])).sqrt()  # (R,)
        coarsest = len(values) - 1
        # 224 px belong to stride 16; a finest stride of 4 takes all sides below 112 px
        levels = (side / (14 * self.strides[0]) + 1e-6).log2().floor().clamp(0, coarsest).long()
        pooled = values[0].new_zeros(len(rois), values[0].shape[1], *self.output_size)
        for level, (values_of, stride) in enumerate(zip(values, self.strides)):
            chosen = (levels == level).nonzero()[:, 0]
            of_level = roi_align(values_of, rois[chosen], self.output_size, 1 / stride, self.sampling_ratio, aligned=True)
            pooled = pooled.index_copy(0, chosen, of_level.to(pooled))
        return pooled


def pool_levels(pooler: Any, maps: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """RoIAlign of every box on every level: boxes (r, 4) an image, xyxy in pixels, R in all, to (R, levels, C, h, w).

    pooler: torchvision's or :class:`AlignedPooler`, for its output size and sampling.
    """
    size, ratio, aligned = pooler.output_size, pooler.sampling_ratio, getattr(pooler, "aligned", False)
    of_level = [roi_align(m, list(boxes), size, 1 / s, ratio, aligned) for m, s in zip(maps, strides)]  # (R, C, h, w) each
    return torch.stack(of_level, dim=1)  # (R, levels, C, h, w)
