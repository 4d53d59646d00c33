"""Precision over recall and the area below it, as COCO interpolates it, for all images or for draws of them."""

from __future__ import annotations

import numpy as np

from detkd.evaluation.matching import Bools, Floats, Integers, Matches

RECALLS = np.linspace(0.0, 1.0, 101)
_CELLS = 4_000_000  # of arrays that are held at once


def precision_curve(matches: Matches, threshold: int = 0, area: int = 0) -> Floats:
    """Precision at 101 recalls from 0 to 1: the best at that recall or more, 0 beyond the highest; NaN without a box to find.

    threshold, area: their places in ``matches``. Source: pycocotools' accumulate.
    """
    total = int(matches.positives[area].sum())
    if not total:
        return np.full(len(RECALLS), np.nan)
    hit = matches.hit[threshold, area][~matches.left_out[threshold, area]]
    found = np.cumsum(hit)
    at = np.flatnonzero(hit)
    recall, precision = found[at] / total, found[at] / (at + 1.0)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return np.asarray(best[np.searchsorted(recall, RECALLS, side="left")])


def average_precision(hit: Bools, positives: float) -> float:
    """The mean precision at the 101 recalls; NaN without a box to find.

    hit: (D,) of detections that count, best score first. positives: boxes there are to find.
    """
    images = np.zeros(len(hit), np.int64)
    return float(weighted_precision(images, hit, np.asarray([positives]), np.ones((1, 1)))[0])


def weighted_precision(image: Integers, hit: Bools, positives: Floats | Integers, weights: Floats) -> Floats:
    """Average precision of draws of the images.

    Args:
        image: (D,) number of the image of each detection that counts, best score first. hit: (D,). positives: (n,) boxes to find an image.
        weights: (R, n) how often each draw has each image.

    Returns:
        (R,) average precision at 101 recalls; NaN for draws without a box to find. A draw's detections of equal score come in one fixed order.
    """
    total = weights @ positives.astype(float)  # (R,)
    at = np.flatnonzero(hit)
    result = np.where(total > 0, 0.0, np.nan)
    if not len(at):
        return result
    step = max(1, _CELLS // max(1, len(image)))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        seen = np.cumsum(weights[part][:, image], 1)[:, at]  # (r, P) detections up to each hit
        found = np.cumsum(weights[part][:, image[at]], 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen > 0, found / seen, 0.0)
            recall = found / total[part, None]
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        # recalls that a hit reaches; before the first box of a draw is found not even 0
        reached = np.where(found > 0, np.searchsorted(RECALLS, np.nan_to_num(recall), side="right"), 0)
        new = np.diff(reached, axis=1, prepend=0)
        result[part] = np.where(total[part] > 0, (best * new).sum(1) / len(RECALLS), np.nan)
    return result


def matched_precision(matches: Matches, threshold: int, area: int, weights: Floats) -> Floats:
    """:func:`weighted_precision` of one threshold and range of area of ``matches``: (R,)."""
    counted = ~matches.left_out[threshold, area]
    return weighted_precision(matches.image[counted], matches.hit[threshold, area][counted], matches.positives[area], weights)
