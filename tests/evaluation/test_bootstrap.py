from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from detkd.boxes import area_xyxy
from detkd.evaluation.bootstrap import SCORES, Interval, bootstrap, corrected_interval, draw_images, pivot_interval, within
from detkd.evaluation.coco import score
from detkd.evaluation.matching import AREAS, make_scene


def problem(seed: int, images: int = 12) -> tuple[list[Any], list[Any]]:
    """Boxes of all sizes and two classes, found now and then; scores without ties."""
    g = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        n = int(g.integers(1, 5))
        corner, side = g.integers(0, 200, (n, 2)), g.integers(8, 150, (n, 2))
        boxes = torch.tensor(np.concatenate([corner, corner + side], 1)).float()
        labels = torch.tensor(g.integers(0, 2, n))
        moved = boxes + torch.tensor(g.integers(-10, 10, (n, 4)))
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 2)
        truths.append({"boxes": boxes, "labels": labels})
        detections.append({"boxes": moved, "labels": labels, "scores": torch.tensor(g.random(n))})
    return detections, truths


def test_draws_are_scores_of_the_images_drawn() -> None:
    detections, truths = problem(0)
    weights = draw_images(12, 5, seed=3)
    draws = bootstrap(make_scene(detections, truths), weights)
    assert draws.scores.shape == (6, 6)
    for r, row in enumerate(weights.astype(int)):
        images = [i for i, count in enumerate(row) for _ in range(count)]
        expected = score([detections[i] for i in images], [truths[i] for i in images], ("a", "b"))
        found = [None if np.isnan(v) else v for v in draws.scores[:, r]]
        assert found == pytest.approx([getattr(expected, name) for name in SCORES], abs=1e-6)
        assert draws.per_class[:, r] == pytest.approx(list(expected.per_class.values()), abs=1e-6)
    assert draws.labels == [0, 1]
    assert draws.images == [sum(bool((t["labels"] == label).any()) for t in truths) for label in (0, 1)]
    sizes = [
        {k for a in area_xyxy(t["boxes"]).tolist() for k, (low, high) in AREAS.items() if low <= a <= high} for t in truths
    ]
    every, *by_size = (sum(name in size for size in sizes) for name in AREAS)
    assert draws.score_images == [every, every, every, *by_size]
    assert len(set(draws.score_images)) > 2


def test_draws_go_by_the_seed() -> None:
    weights = draw_images(7, 100, seed=0)
    assert weights.shape == (101, 7)
    assert (weights.sum(1) == 7).all()
    assert (weights[0] == 1).all()
    assert np.array_equal(weights, draw_images(7, 100, seed=0))
    assert not np.array_equal(weights, draw_images(7, 100, seed=1))
    assert weights[1:].mean(0) == pytest.approx(1, abs=0.4)
    with pytest.raises(ValueError, match="at least one resample"):
        draw_images(7, 0, seed=0)


@pytest.mark.parametrize("interval", [pivot_interval, corrected_interval])
def test_intervals(interval: Callable[..., Interval]) -> None:
    draws = np.asarray([0.5, *np.linspace(0, 1, 101), np.nan])
    assert interval(draws) == Interval(0.5, pytest.approx(0.025), pytest.approx(0.975))
    assert interval(draws, level=0.5) == Interval(0.5, pytest.approx(0.25), pytest.approx(0.75))
    assert interval(np.full(9, 0.3)) == Interval(0.3, pytest.approx(0.3), pytest.approx(0.3))
    assert interval(np.asarray([np.nan, 0.1])) == Interval(None, None, None)
    assert interval(np.asarray([0.1, np.nan])) == Interval(0.1, None, None)


@pytest.mark.parametrize("interval", [pivot_interval, corrected_interval])
def test_no_interval_of_a_score_that_many_draws_do_not_have(interval: Callable[..., Interval]) -> None:
    draws = np.asarray([0.5, *np.linspace(0, 1, 95), *[np.nan] * 5])
    assert interval(draws) == Interval(0.5, pytest.approx(0.025), pytest.approx(0.975))
    assert interval(np.append(draws, np.nan)) == Interval(0.5, None, None)


def test_draws_that_are_mostly_above_the_value_move_the_interval_down() -> None:
    draws = np.asarray([0.2, *np.linspace(0, 1, 1001)])  # a fifth is below
    assert pivot_interval(draws) == Interval(0.2, pytest.approx(0.4 - 0.975), pytest.approx(0.4 - 0.025))
    assert within(pivot_interval(draws), 0.0, 1.0) == Interval(0.2, 0.0, pytest.approx(0.375))
    # the bias z is -.8406, as .2003 of a standard normal is below it; the ends are its distribution at 2 z - 1.96 and 2 z + 1.96
    low, high = (NormalDist().cdf(2 * NormalDist().inv_cdf(200.5 / 1001) + z) for z in (-1.959964, 1.959964))
    assert (low, high) == pytest.approx((0.000136, 0.60982), abs=1e-5)
    assert corrected_interval(draws) == Interval(0.2, pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    # and up, by as much
    up = corrected_interval(1 - draws)
    assert (up.low, up.high) == pytest.approx((1 - high, 1 - low), abs=1e-6)


@pytest.mark.parametrize("sign", [-1, 1])
def test_no_corrected_interval_that_would_be_without_the_value(sign: int) -> None:
    spread = np.linspace(0.01, 0.31, 1000)
    assert corrected_interval(sign * np.asarray([0.0, *spread])) == Interval(0.0, None, None)  # all draws on one side
    few = corrected_interval(sign * np.asarray([spread[24] + 1e-6, *spread]))  # 25 of 1000 below
    assert (few.low, few.high) == (None, None)
    enough = corrected_interval(sign * np.asarray([spread[25] + 1e-6, *spread]))
    assert enough.low <= enough.value <= enough.high  # type: ignore[operator]
    assert corrected_interval(np.full(50, 1.0)) == Interval(1.0, 1.0, 1.0)  # no draw is off


def test_within_leaves_alone_what_is_undefined() -> None:
    assert within(Interval(None, None, None), 0, 1) == Interval(None, None, None)
    assert within(Interval(0.9, 0.8, 1.2), 0, 1) == Interval(0.9, 0.8, 1.0)


def coverage(interval: Callable[..., Interval]) -> float:
    """How often the interval of a biased estimate has the truth: the square of a mean, of which draws have the bias once more."""
    g = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        sample = g.normal(0.0, 1.0, (8, 20))  # eight unknown means, all 0; the score is the sum of their squares, .4 too high
        drawn = g.integers(0, 20, (200, 20))
        score = [(sample.mean(1) ** 2).sum(), *(sample[:, drawn].mean(2) ** 2).sum(0)]
        of = interval(np.asarray(score))
        hits += of.low is not None and of.high is not None and of.low <= 0.0 <= of.high
    return hits / 400


def percentiles(draws: Any) -> Interval:
    return Interval(draws[0], *np.quantile(draws[1:], [0.025, 0.975]))


def test_coverage_of_a_score_that_is_biased_upward() -> None:
    assert coverage(percentiles) == 0
    assert coverage(pivot_interval) > 0.9


def test_the_same_detector_differs_by_nothing_and_pairing_narrows() -> None:
    detections, truths = problem(1, images=40)
    worse = [{k: v[: max(1, len(v) - 1)] for k, v in d.items()} for d in detections]
    weights = draw_images(40, 200, seed=0)
    first, same, less = (bootstrap(make_scene(d, truths), weights).scores for d in (detections, detections, worse))
    assert pivot_interval(first[1] - same[1]) == Interval(0.0, 0.0, 0.0)
    paired = pivot_interval(less[1] - first[1])
    apart = pivot_interval(less[1] - bootstrap(make_scene(detections, truths), draw_images(40, 200, seed=9)).scores[1])
    assert paired.value == pytest.approx(less[1, 0] - first[1, 0])
    assert less[1, 0] < first[1, 0]
    assert paired.high - paired.low < apart.high - apart.low  # type: ignore[operator]


def test_empty_detections_and_a_size_without_boxes() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    truth = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0])}
    draws = bootstrap(make_scene([nothing, nothing], [truth, nothing]), np.asarray([[1.0, 1.0], [0.0, 2.0]]))
    assert draws.scores[:4, 0].tolist() == [0, 0, 0, 0]
    assert np.isnan(draws.scores[4:, 0]).all()
    assert np.isnan(draws.scores[:, 1]).all()  # the draw has no box
