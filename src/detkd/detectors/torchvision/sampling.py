"""Sampling of positives and negatives with a random state of its own."""

from __future__ import annotations

import torch
from torch import Tensor


class SeededSampler:
    """Draw a batch of given size and largest share of positives from each image.

    Stands in for torchvision's BalancedPositiveNegativeSampler, which draws from the global random state: a frozen teacher's loss
    would then change the course of its student. The generator lives on the CPU, so that all devices draw alike.

    Args:
        size: elements an image. positive_share: largest share of positives among them. generator: shared by the samplers of one detector.
    """

    def __init__(self, size: int, positive_share: float, generator: torch.Generator) -> None:
        self.size = size
        self.positive_share = positive_share
        self.generator = generator

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (n,) an image, -1 ignored, 0 negative, > 0 positive, to uint8 masks (n,) of the positives and the negatives drawn."""
        positives, negatives = [], []
        for label in labels:
            positive = torch.where(label >= 1)[0]
            negative = torch.where(label == 0)[0]
            n_positive = min(len(positive), int(self.size * self.positive_share))
            positives.append(self._draw(label, positive, n_positive))
            negatives.append(self._draw(label, negative, min(len(negative), self.size - n_positive)))
        return positives, negatives

    def _draw(self, label: Tensor, candidates: Tensor, count: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=self.generator)[:count]
        mask = torch.zeros_like(label, dtype=torch.uint8)
        mask[candidates[order.to(candidates.device)]] = 1
        return mask
