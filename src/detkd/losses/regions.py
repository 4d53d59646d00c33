"""Object and background regions of feature maps (DeFeat, Guo et al., CVPR 2021, section 3.1)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from detkd.losses.connectors import neck_strides
from detkd.structures import Prediction, Target, join_targets

FINEST_STRIDE = 4  # that a box of ``box_side`` pixels belongs to: p2 of a feature pyramid


def object_masks(
    targets: Sequence[Target],
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    box_side: float = 56.0,
) -> list[Tensor]:
    """Mark the cells that objects cover, each box on one level.

    Args:
        targets: one an image, B in all; boxes without area, or with a side that is no finite number, mark nothing.
        sizes, strides: (height, width) and pixels a cell of each level.
        box_side: side in pixels of the square whose level has stride 4; each doubling is one level up.

    Returns:
        bool masks (B, H, W), one a level. A box marks the level whose log2(stride) is nearest to 2 + floor(log2(sqrt(w h) / box_side)), the
        finer of two, and there every cell that it overlaps: at least one.

    Source: section 3.1 of the paper, with the level rule of feature pyramids (Lin et al., CVPR 2017, equation 1); the rounding of boxes to
    cells is ours. Nothing waits for the device.
    """
    image, boxes, _ = join_targets(targets)
    boxes = boxes.float()
    extent = boxes[:, 2:] - boxes[:, :2]
    solid = ((extent > 0) & extent.isfinite()).all(dim=1)  # (n,)
    # what is no number has no cell to be looked up either
    boxes = boxes.where(solid[:, None], 0)
    level = box_levels(boxes, strides, box_side)
    return [
        _cover(image, boxes / stride, solid & (level == i), len(targets), *size)
        for i, (size, stride) in enumerate(zip(sizes, strides))
    ]


def box_levels(boxes: Tensor, strides: Sequence[int], box_side: float = 56.0) -> Tensor:
    """(n,) int64: which of levels a box of (n, 4) belongs to by its size; ``strides``, ``box_side`` as in :func:`object_masks`."""
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=torch.finfo(boxes.dtype).tiny ** 0.5).prod(1).sqrt()
    wanted = math.log2(FINEST_STRIDE) + (side / box_side).log2().floor()  # (n,) log2 of a stride
    # numbers go to the kernels as they are: a tensor made of them would wait for the device
    return torch.stack([(wanted - math.log2(s)).abs() for s in strides], dim=1).argmin(dim=1)  # (n, levels) -> (n,)


def strides_of(prediction: Prediction, names: Sequence[str]) -> list[int]:
    """Pixels a cell of the maps of those names: the neck's strides, of backbone stages 2 to the power in the name ("c4")."""
    neck = neck_strides(prediction)
    return [neck[name] if name in neck else 2 ** int(re.sub(r"\D", "", name)) for name in names]


def _cover(image: Tensor, boxes: Tensor, counts: Tensor, images: int, height: int, width: int) -> Tensor:
    """Cells (images, height, width) that boxes (n, 4), in cells, overlap; ``counts`` (n,) says which boxes do."""
    (left, right), (top, bottom) = _span(boxes[:, 0], boxes[:, 2], width), _span(boxes[:, 1], boxes[:, 3], height)
    # +1 and -1 at a box's corners; summed along both axes they are 1 inside it
    corners = torch.zeros(images, height + 1, width + 1, dtype=torch.int32, device=boxes.device)
    one = counts.to(torch.int32)
    for x, y, sign in ((left, top, 1), (right, top, -1), (left, bottom, -1), (right, bottom, 1)):
        corners.index_put_((image, y, x), sign * one, accumulate=True)
    return corners.cumsum(1).cumsum(2)[:, :height, :width] > 0


def _span(low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The first cell, and the one behind the last, from ``low`` to ``high``, (n,) each: at least one of ``cells``."""
    first = low.floor().clamp(0, cells - 1).long()
    return first, torch.maximum(high.ceil().clamp(max=cells).long(), first + 1)
