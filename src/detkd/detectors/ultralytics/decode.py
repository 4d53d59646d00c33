"""Raw outputs to detections: class probabilities above a threshold, non-maximum suppression within classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detkd.boxes import clip_xyxy
from detkd.detectors.ultralytics.dfl import decode_boxes, site_grid
from detkd.structures import Detection

# Best (site, class) pairs of an image that enter NMS, as in the package.
CANDIDATES = 30_000


@torch.no_grad()
def detections(
    raw_box: Tensor,
    raw_cls: Tensor,
    sizes: Sequence[tuple[int, int, int]],
    strides: Sequence[int],
    image_size: tuple[int, int],
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
) -> list[Detection]:
    """One Detection an image, best first.

    Args:
        raw_box: (B, N, 4*bins). raw_cls: (B, N, C) logits. image_size: (height, width) in pixels.

    A site may give a detection of several classes, as in the package's validation. Boxes are clipped after NMS.
    """
    centres, cells = site_grid(sizes, strides, raw_box.device)
    boxes = decode_boxes(raw_box.float(), centres, cells)  # (B, N, 4)
    scores = raw_cls.float().sigmoid()  # (B, N, C)
    found: list[Detection] = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        best, index = image_scores.flatten().topk(min(CANDIDATES, image_scores.numel()))
        index = index[best > score_threshold]
        best = best[: len(index)]
        site, label = index // image_scores.shape[1], index % image_scores.shape[1]
        keep = batched_nms(image_boxes[site], best, label, nms_iou)[:max_detections]
        found.append({"boxes": clip_xyxy(image_boxes[site][keep], image_size), "labels": label[keep], "scores": best[keep]})
    return found
