"""How sure scores are: intervals from draws of the images."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from detkd.evaluation.coco import IOU_THRESHOLDS
from detkd.evaluation.matching import AREAS, Floats, Scene, match_class
from detkd.evaluation.precision import drawn_precision

SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
LEVEL = 0.95
UNDEFINED = 0.05  # of draws; where the score is not defined in more, the others say how it is where it is, not how sure it is
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A score on the images as they are, None where it is not defined, and the interval of it, None where draws do not tell."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Draws:
    """Scores of R draws of the images, NaN where they are not defined; the first is the images as they are.

    scores: (6, R) in the order of ``SCORES``. per_class: (K, R) AP of the classes that have a box, by ``labels``. images: (K,) how many
    images have a box of the class. score_images: (6,) how many have a box, of the score's range of area.
    """

    labels: list[int]
    scores: Floats
    per_class: Floats
    images: list[int]
    score_images: list[int]


def draw_images(images: int, resamples: int, seed: int) -> Floats:
    """(1 + resamples, images) how often each draw has each image: once in the first, and then as in draws with replacement."""
    if resamples < 1:
        raise ValueError(f"expected at least one resample, got {resamples}")
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate([np.ones((1, images)), drawn])


def bootstrap(scene: Scene, weights: Floats) -> Draws:
    """Score draws of the images.

    Args:
        scene: see :func:`~detkd.evaluation.matching.make_scene`. weights: (R, images), whole numbers, see :func:`draw_images`; the same for
            two detectors makes their differences paired.

    Matching does not depend on which other images there are, so it is done once; a draw only counts anew. A class without a box in a draw is
    left out of its mean.
    """
    labels, areas = scene.labels, list(AREAS.values())
    total = np.zeros((len(areas), len(IOU_THRESHOLDS), len(weights)))
    known = np.zeros_like(total)
    per_class = np.full((len(labels), len(weights)), np.nan)
    images: list[int] = []
    boxes = np.zeros((len(areas), len(scene.true)), np.int64)
    for k, label in enumerate(labels):
        matches = match_class(scene, label, IOU_THRESHOLDS, areas)
        images.append(int((matches.positives[0] > 0).sum()))
        boxes += matches.positives
        found = drawn_precision(matches, weights).swapaxes(0, 1)  # (A, T, R)
        total += np.nan_to_num(found)
        known += ~np.isnan(found)
        per_class[k] = found[0].mean(0)
    mean = np.where(known > 0, total / np.maximum(known, 1), np.nan)  # (A, T, R)
    every = mean.mean(1)  # (A, R)
    scores = np.stack([every[0], mean[0, 0], mean[0, IOU_THRESHOLDS.index(0.75)], *every[1:]])
    every_area, *by_area = (int(count) for count in (boxes > 0).sum(1))
    return Draws(labels, scores, per_class, images, [every_area] * 3 + by_area)


def pivot_interval(draws: Floats, level: float = LEVEL) -> Interval:
    """The interval of a mean over classes, or of a difference of two: the first of (R,) draws less the quantiles of how far the others are off.

    What draws are off by, they are off by on average too: a class of few boxes scores higher in them. A percentile interval has that bias
    twice, this one takes it out.

    Source: the basic bootstrap interval, Davison and Hinkley, Bootstrap Methods and their Application (1997), equation 5.6. The bounds of a score
    are not known here; see :func:`within`.
    """
    value, rest = _defined(draws)
    if value is None or rest is None:
        return Interval(value, None, None)
    low, high = np.quantile(rest, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(2 * value - high), float(2 * value - low))


def corrected_interval(draws: Floats, level: float = LEVEL) -> Interval:
    """The interval of a score of one class, or of a difference of two: quantiles of the draws, moved by how few of them are below the first.

    Of one class with few boxes draws are skewed and often at 0 or 1, which this interval never passes.

    Source: the bias-corrected interval, Efron and Tibshirani, An Introduction to the Bootstrap (1993), equation 14.10 without acceleration. Draws
    equal to the value count as half below it. Where a share of (1 - level) / 2 or less is on one side, so nearly all on the other, the formula
    ends before the value, of draws on one side alone at a single point; there is no interval then.
    """
    value, rest = _defined(draws)
    if value is None or rest is None:
        return Interval(value, None, None)
    below = float(np.mean(rest < value) + np.mean(rest <= value)) / 2
    if not (1 - level) / 2 < below < (1 + level) / 2:
        return Interval(value, None, None)
    shift = 2 * _NORMAL.inv_cdf(below)
    ends = [_NORMAL.cdf(shift + _NORMAL.inv_cdf(q)) for q in ((1 - level) / 2, (1 + level) / 2)]
    low, high = np.quantile(rest, ends)
    return Interval(value, float(low), float(high))


def within(of: Interval, least: float, most: float) -> Interval:
    """An interval cut off at what a score can be."""
    if of.low is None or of.high is None:
        return of
    return Interval(of.value, min(max(of.low, least), most), min(max(of.high, least), most))


def _defined(draws: Floats) -> tuple[float | None, Floats | None]:
    """The first draw, None if NaN, and the others that are not NaN; None if the first is, or more than ``UNDEFINED`` of the others are."""
    if np.isnan(draws[0]):
        return None, None
    rest = draws[1:][~np.isnan(draws[1:])]
    return float(draws[0]), rest if len(rest) and len(rest) >= (1 - UNDEFINED) * (len(draws) - 1) else None
