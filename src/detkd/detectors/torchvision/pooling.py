"""RoIAlign (He et al., ICCV 2017) from one level of a pyramid or from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detkd.detectors.torchvision.roi_align import roi_align


class PyramidPooler(nn.Module):
    """RoIAlign of every box from the level that its size assigns it to: floor(4 + log2(side / 224)), where level k has stride 2^k.

    Stands in for torchvision's MultiScaleRoIAlign, which it equals by default. Source: FPN (Lin et al., CVPR 2017), equation 1.

    Args:
        output_size: (height, width) in bins. strides: pixels a cell of each map, fine first.
        sampling_ratio: points a bin and side; 0: as many as it has cells. aligned: cell centres lie half a cell off their corners, as in
            MMDetection and Detectron2.
    """

    def __init__(
        self, output_size: tuple[int, int], strides: Sequence[int], sampling_ratio: int = 2, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size, self.strides = output_size, tuple(strides)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, maps: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Maps (B, C, H, W), fine first, and boxes (r, 4) an image, xyxy in pixels, R in all, to (R, C, h, w)."""
        values, rois = list(maps.values()), to_rois(boxes)
        if len(values) == 1:
            return self.of_map(values[0], rois, self.strides[0])
        levels = self.levels(rois)
        pooled = values[0].new_zeros(len(rois), values[0].shape[1], *self.output_size)
        for level, (values_of, stride) in enumerate(zip(values, self.strides)):
            chosen = (levels == level).nonzero()[:, 0]
            pooled = pooled.index_copy(0, chosen, self.of_map(values_of, rois[chosen], stride).to(pooled))
        return pooled

    def every(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Every box from every map: boxes (r, 4) an image, xyxy in pixels, R in all, to (R, levels, C, h, w)."""
        rois = to_rois(boxes)
        return torch.stack([self.of_map(m, rois, stride) for m, stride in zip(maps, self.strides)], dim=1)

    def of_map(self, values: Tensor, rois: Tensor, stride: int) -> Tensor:
        """RoIAlign of rois (R, 5) from one map of a stride: (R, C, h, w)."""
        return roi_align(values, rois, self.output_size, 1 / stride, self.sampling_ratio, self.aligned)

    def levels(self, rois: Tensor) -> Tensor:
        """(R,) index of the map that each of rois (R, 5) is read from."""
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        finest, coarsest = (stride.bit_length() - 1 for stride in (self.strides[0], self.strides[-1]))
        # the small number puts sides that are a power of two where exact arithmetic would
        return (4 + (side / 224).log2() + 1e-6).floor().clamp(finest, coarsest).long() - finest


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes (r, 4) an image, R in all, to (R, 5): the image's index before each."""
    index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    return torch.cat([index, torch.cat(list(boxes))], dim=1)
