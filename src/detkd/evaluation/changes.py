"""What two detectors see differently, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkd.evaluation.matching import Bools, Boxes, Scene, greedy, iou


@dataclass(frozen=True)
class Judged:
    """The detections of one image that are shown.

    found: those of sufficient score. right: (n,) found a box. left_out: (n,) lie in a crowd or on a box to ignore. missed: boxes that nothing
    found.
    """

    found: Boxes
    right: Bools
    left_out: Bools
    missed: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """True positives, false positives, false negatives."""
        return int(self.right.sum()), int((~self.right & ~self.left_out).sum()), self.missed

    @property
    def balance(self) -> int:
        """TP - FP - FN."""
        hits, alarms, missed = self.counts
        return hits - alarms - missed


def judge_images(scene: Scene, score: float = 0.3, threshold: float = 0.5) -> list[Judged]:
    """One an image: detections that score more than ``score``, matched by COCO's rules at IoU ``threshold``.

    Detections of classes without a box in the whole set are left out of it, as of the scores.
    """
    labels = scene.labels
    return [_judge(found, true, labels, score, threshold) for found, true in zip(scene.found, scene.true)]


def _judge(found: Boxes, true: Boxes, labels: Sequence[int], score: float, threshold: float) -> Judged:
    found = found.of((found.scores > score) & np.isin(found.labels, labels))
    own = found.labels[:, None] == true.labels[None]
    index = greedy(np.where(own, iou(found, true), -1.0), true.void[None], true.void, np.asarray([threshold]))[0, 0]
    void = np.append(true.void, False)[index]
    right = (index >= 0) & ~void
    return Judged(found, right, (index >= 0) & void, int((~true.void).sum() - right.sum()))


def most_changed(baseline: Sequence[Judged], others: Sequence[Sequence[Judged]]) -> list[tuple[int, int]]:
    """(image, change), most changed first, equal ones in order.

    The change of an image is the difference of TP - FP - FN to the baseline's, of the detector that differs most, with its sign.
    """
    changes = []
    for number, first in enumerate(baseline):
        differences = [judged[number].balance - first.balance for judged in others]
        changes.append((number, max(differences, key=abs, default=0)))
    return sorted(changes, key=lambda entry: -abs(entry[1]))
