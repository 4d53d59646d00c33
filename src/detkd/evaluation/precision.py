"""Precision over recall and the area below it, as COCO interpolates it, for all images or for draws of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detkd.evaluation.matching import Bools, Floats, Integers, Matches

RECALLS = np.linspace(0.0, 1.0, 101)
_CELLS = 1_000_000  # of arrays that are held at once: few enough to stay near the processor

Counts = NDArray[np.int32]


def precision_curve(matches: Matches, threshold: int = 0, area: int = 0) -> Floats:
    """Precision at 101 recalls from 0 to 1: the best at that recall or more, 0 beyond the highest; NaN without a box to find.

    threshold, area: their places in ``matches``. Source: pycocotools' accumulate.
    """
    counted = ~matches.left_out[threshold, area]
    return interpolated_precision(matches.hit[threshold, area][counted], int(matches.positives[area].sum()))


def interpolated_precision(hit: Bools, positives: int) -> Floats:
    """(101,) as :func:`precision_curve`, of detections that count, best score first. positives: boxes there are to find."""
    if not positives:
        return np.full(len(RECALLS), np.nan)
    at = np.flatnonzero(hit)
    recall, precision = np.arange(1, len(at) + 1) / positives, np.arange(1, len(at) + 1) / (at + 1.0)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.asarray(best[np.searchsorted(recall, RECALLS, side="left")])


def average_precision(hit: Bools, positives: int) -> float:
    """The mean precision at the 101 recalls; NaN without a box to find. See :func:`interpolated_precision`."""
    return float(interpolated_precision(hit, positives).mean())


def drawn_precision(matches: Matches, weights: Floats | Integers) -> Floats:
    """Average precision of draws of the images.

    Args:
        matches: of one class; T thresholds, A ranges of area. weights: (R, images) how often each draw has each image, whole numbers.

    Returns:
        (T, A, R) average precision at 101 recalls; NaN for draws without a box to find. A draw's detections of equal score come in one fixed order.

    Nearly all detections count at every threshold or at none, so what comes before a hit is counted once for all thresholds.
    """
    thresholds, areas, detections = matches.hit.shape
    result = np.full((thresholds, areas, len(weights)), np.nan)
    # what is held has a row for each detection or, of the recalls, for each box
    step = max(1, _CELLS // max(1, detections, int(matches.positives.sum(1).max(initial=0))))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        drawn = np.ascontiguousarray(weights[part].T, np.int32)  # (images, r)
        for area in range(areas):
            result[:, area, part] = _of_area(matches, area, drawn)
    return result


def _of_area(matches: Matches, area: int, drawn: Counts) -> Floats:
    """(T, r) for one range of area."""
    out, image = matches.left_out[:, area], matches.image
    total = matches.positives[area] @ drawn  # (r,)
    always = ~out.any(0)
    sometimes = ~always & ~out.all(0)
    before, place = _running(drawn, image[always]), np.cumsum(always)
    reached = _reached(total)  # (F, r)
    column = np.arange(drawn.shape[1])
    result = np.zeros((len(out), drawn.shape[1]))
    for t in range(len(out)):
        at = np.flatnonzero(matches.hit[t, area])
        if not len(at):
            continue
        found = _running(drawn, image[at])  # (1 + P, r)
        seen = before[place[at]]  # (P, r)
        others = np.flatnonzero(sometimes & ~out[t])
        if len(others):
            seen += _running(drawn, image[others])[np.searchsorted(others, at, side="right")]
        precision = found[1:] / np.maximum(seen, 1)
        best = np.maximum.accumulate(precision[::-1], 0)[::-1]
        recalls = np.diff(reached[found, column], axis=0)
        result[t] = np.einsum("pr,pr->r", best, recalls) / len(RECALLS)
    return np.where(total > 0, result, np.nan)


def _running(drawn: Counts, image: Integers) -> Counts:
    """(1 + D, r) how many of the first 0, 1, ... D detections there are, each as often as its image was drawn."""
    sums = np.zeros((len(image) + 1, drawn.shape[1]), np.int32)
    np.cumsum(drawn[image], 0, dtype=np.int32, out=sums[1:])
    return sums


def _reached(total: Integers) -> Counts:
    """(1 + F, r) how many of the 101 recalls 0, 1, ... F found boxes reach; before the first not even recall 0. F: the most there are."""
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.arange(total.max(initial=0) + 1)[:, None] / total
    reached = np.searchsorted(RECALLS, np.nan_to_num(recall), side="right").astype(np.int32)
    reached[:1] = 0
    return reached
