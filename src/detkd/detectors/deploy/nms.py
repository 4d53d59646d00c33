"""Non-maximum suppression whose shapes do not depend on the values, so that it can stand in an exported graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


def surviving(boxes: Tensor, scores: Tensor, labels: Tensor, groups: int, iou: float) -> Tensor:
    """Which boxes are left after greedy suppression among those of one label.

    Args:
        boxes: (B, K, 4) xyxy. scores: (B, K); a box of score 0 is none. labels: (B, K) int64, from 0 to ``groups`` - 1.
        iou: a box is suppressed by a better one of the same image and label with a larger IoU.

    Returns (B, K) bool. One call for all images: groups are laid side by side, in float64, so that the distance costs no precision.
    """
    batch, count = scores.shape
    there = scores > 0  # (B, K)
    # Those that are none lie on one another in a group of their own, so that the first of them does away with the rest.
    corners = torch.arange(4, device=boxes.device)
    unit = torch.div(corners, 2, rounding_mode="floor").to(boxes)  # (0, 0, 1, 1), without a literal tensor
    boxes = torch.where(there[..., None], boxes, unit)
    image = torch.arange(batch, device=labels.device)[:, None]
    group = torch.where(there, image * groups + labels, -1)  # (B, K)
    # Two more, each alone in its group, always survive: torch.export takes it that two or more do, and its program stops where less do.
    boxes = torch.cat([boxes.flatten(0, 1), unit.expand(2, 4)]).double()  # (B, K, 4) -> (B*K + 2, 4)
    group = torch.cat([group.flatten(), torch.arange(-3, -1, device=labels.device)])  # (B*K + 2,)
    ranks = torch.cat([scores.flatten(), scores.new_zeros(2)]).double()  # (B*K + 2,)
    span = boxes.amax() - boxes.amin() + 1
    kept = nms(boxes + (group * span)[:, None], ranks, iou)
    mask = torch.zeros(batch * count + 2, device=scores.device).index_put((kept,), scores.new_ones(()).float())
    mask = mask[: batch * count]
    return (mask > 0).view(batch, count) & there


# One node in a graph, which each file format writes in its own words: see :func:`decompositions` and onnx_file.py.
suppress = torch.library.custom_op(
    "detkd::suppress",
    surviving,
    mutates_args=(),
    schema="(Tensor boxes, Tensor scores, Tensor labels, int groups, float iou) -> Tensor",
)


@suppress.register_fake
def _shape(boxes: Tensor, scores: Tensor, labels: Tensor, groups: int, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def decompositions() -> dict[object, object]:
    """For ``ExportedProgram.run_decompositions``: the node above in words of torch and torchvision alone."""
    return {torch.ops.detkd.suppress.default: surviving}
