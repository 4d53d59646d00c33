"""Whether a detector's scores are the chances that it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkd.evaluation.matching import Bools, Floats, Integers, Scene, match_class


@dataclass(frozen=True)
class Reliability:
    """Detections by bins of their scores.

    edges: (B + 1,). counts: (B,) detections. confidence: (B,) mean score, precision: (B,) part that found a box; NaN in an empty bin. ece: the
    detection ECE, None without detections.
    """

    edges: Floats
    counts: Integers
    confidence: Floats
    precision: Floats
    ece: float | None


def judged_scores(scene: Scene, iou: float = 0.5) -> tuple[Floats, Bools]:
    """Scores of all detections that count, and whether each found a box of its class: (D,) and (D,), class after class."""
    parts = [match_class(scene, label, [iou]) for label in scene.labels]
    counted = [~m.left_out[0, 0] for m in parts]
    scores = np.concatenate([np.zeros(0), *(m.scores[c] for m, c in zip(parts, counted))])
    return scores, np.concatenate([np.zeros(0, bool), *(m.hit[0, 0][c] for m, c in zip(parts, counted))])


def reliability(scores: Floats, hit: Bools, bins: int = 20, threshold: float = 0.3) -> Reliability:
    """Precision against confidence, and the detection expected calibration error.

    D-ECE = sum over bins of |I_b| / |D| * |precision(b) - confidence(b)|, over the detections that score at least ``threshold`` in ``bins``
    bins of equal width over [0, 1].

    Source: the detection expected calibration error of Kueppers et al., Multivariate Confidence Calibration for Object Detection, CVPR
    Workshops 2020, with the score as the only dimension. A detection is right by COCO's matching. The threshold changes the number much:
    most detections score next to nothing.
    """
    if bins < 1:
        raise ValueError(f"expected at least one bin, got {bins}")
    edges = np.linspace(0, 1, bins + 1)
    kept = scores >= threshold
    scores, hit = scores[kept], hit[kept]
    place = np.clip((scores * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, scores, bins) / counts
        precision = np.bincount(place, hit.astype(float), bins) / counts
    gaps = np.nan_to_num(np.abs(precision - confidence)) * counts
    return Reliability(edges, counts, confidence, precision, float(gaps.sum() / len(scores)) if len(scores) else None)
