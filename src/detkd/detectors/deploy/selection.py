"""From scored boxes to detections, in shapes that do not depend on the values: what is not there has score 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkd.detectors.deploy.nms import suppress
from detkd.structures import Detection


class Candidates(NamedTuple):
    """What enters suppression: boxes (B, K, 4) xyxy pixels, scores (B, K), labels (B, K) int64. A box of score 0 is none."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Of (B, N, D) the rows index (B, K): (B, K, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def best_pairs(boxes: Tensor, scores: Tensor, count: int) -> Candidates:
    """The best ``count`` (box, class) pairs of each image.

    boxes: (B, N, 4), or (B, N, C, 4) with a box for each class. scores: (B, N, C).
    """
    classes = scores.shape[2]
    best, index = scores.flatten(1).topk(min(count, scores.shape[1] * classes))  # (B, N, C) -> (B, N*C) -> (B, K)
    row = torch.div(index, classes, rounding_mode="floor")
    chosen = rows(boxes, row) if boxes.ndim == 3 else rows(boxes.flatten(1, 2), index)  # (B, N, C, 4) -> (B, N*C, 4)
    return Candidates(chosen, best, index - row * classes)


def best_of_levels(boxes: Tensor, scores: Tensor, count: int, lengths: Sequence[int]) -> Candidates:
    """The best ``count`` (box, class) pairs of each level of each image; ``lengths`` are the boxes of each level."""
    levels = zip(torch.split(boxes, list(lengths), dim=1), torch.split(scores, list(lengths), dim=1))
    parts = [best_pairs(of_level, scored, count) for of_level, scored in levels]
    return Candidates(*(torch.cat(part, dim=1) for part in zip(*parts)))


def best_of_classes(boxes: Tensor, scores: Tensor, count: int) -> Candidates:
    """The best ``count`` boxes of each class of each image. boxes: (B, N, 4). scores: (B, N, C)."""
    classes = scores.shape[2]
    best, index = scores.transpose(1, 2).topk(min(count, scores.shape[1]))  # (B, C, k)
    labels = torch.arange(classes, device=scores.device)[:, None].expand(index.shape[1:])[None].expand_as(index)
    return Candidates(rows(boxes, index.flatten(1)), best.flatten(1), labels.flatten(1))  # (B, C, k) -> (B, C*k)


def above(scores: Tensor, threshold: float) -> Tensor:
    """Scores with those of at most ``threshold`` set to 0."""
    return torch.where(scores > threshold, scores, torch.zeros_like(scores))


def keep_best(candidates: Candidates, groups: int, iou: float, most: int) -> Candidates:
    """What is left after suppression within labels, the best ``most`` of each image, best first.

    Rows beyond what was found have score 0, label -1 and a box of zeros.
    """
    boxes, scores, labels = candidates
    kept = torch.where(suppress(boxes, scores, labels, groups, iou), scores, torch.zeros_like(scores))
    best, index = kept.topk(min(most, kept.shape[1]))  # (B, D)
    found = best > 0
    chosen = torch.where(found[..., None], rows(boxes, index), torch.zeros_like(boxes[:, :1]))
    return Candidates(chosen, best, torch.where(found, labels.gather(1, index), -1))


def to_detections(found: Candidates) -> list[Detection]:
    """One Detection an image, without the empty rows."""
    out: list[Detection] = []
    for boxes, scores, labels in zip(*found):
        there = scores > 0
        out.append({"boxes": boxes[there], "labels": labels[there], "scores": scores[there]})
    return out
