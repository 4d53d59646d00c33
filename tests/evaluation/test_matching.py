from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkd.evaluation import precision
from detkd.evaluation.coco import IOU_THRESHOLDS, score
from detkd.evaluation.matching import (
    AREAS,
    Matches,
    Pairs,
    Scene,
    greedy,
    greedy_pairs,
    iou,
    iou_pairs,
    make_scene,
    match_class,
    pairs,
)
from detkd.evaluation.precision import average_precision, drawn_precision, precision_curve

CLASSES = ("ant", "bee", "cat", "dog")


def problem(seed: int, images: int = 20) -> tuple[list[Any], list[Any]]:
    """Detections that partly hit; crowds, difficult boxes, all sizes, wrong classes, ties and images without either."""
    g = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        n, m = int(g.integers(0, 6)), int(g.integers(0, 9))
        corner, side = g.integers(0, 300, (n, 2)), g.integers(8, 200, (n, 2))
        boxes = np.concatenate([corner, corner + side], 1)
        labels = g.integers(0, 3, n)
        crowd = g.random(n) < 0.1
        truths.append(
            {
                "boxes": torch.tensor(boxes).float().reshape(-1, 4),
                "labels": torch.tensor(labels),
                "iscrowd": torch.tensor(crowd),
                "area": torch.tensor(side.prod(1) * 0.8),
                "ignore": torch.tensor(~crowd & (g.random(n) < 0.15)),
            }
        )
        source = g.integers(0, n, m) if n else np.zeros(0, int)
        moved = boxes[source] + g.integers(-25, 25, (len(source), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 4)
        guess = np.where(g.random(len(source)) < 0.7, labels[source], g.integers(0, 4, len(source)))
        scores = torch.tensor(g.random(len(source)).round(2)).float()
        detections.append(
            {"boxes": torch.tensor(moved).float().reshape(-1, 4), "labels": torch.tensor(guess), "scores": scores}
        )
    return detections, truths


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("difficult", [False, True])
def test_equals_the_scores_of_pycocotools(seed: int, difficult: bool) -> None:
    detections, truths = problem(seed)
    if not difficult:
        truths = [{k: v for k, v in t.items() if k != "ignore"} for t in truths]
    scores = score(detections, truths, CLASSES)
    scene = make_scene(detections, truths)
    once = np.ones((1, len(truths)))
    direct, weighted = np.full((2, len(scene.labels), 4, 10), np.nan)
    for k, label in enumerate(scene.labels):
        matches = match_class(scene, label, IOU_THRESHOLDS, list(AREAS.values()))
        for a, t in np.ndindex(4, 10):
            direct[k, a, t] = precision_curve(matches, t, a).mean()
        weighted[k] = drawn_precision(matches, once)[..., 0].T
    np.testing.assert_allclose(direct, weighted, atol=1e-12)
    expected = [scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large]
    parts = [direct[:, 0], direct[:, 0, 0], direct[:, 0, 5], *(direct[:, a] for a in (1, 2, 3))]
    found = [None if np.isnan(part).all() else np.nanmean(part) for part in parts]
    assert found == pytest.approx(expected, abs=1e-6)


def repeated(scene: Scene, draw: Any) -> Scene:
    images = [int(i) for i in draw]
    return Scene([scene.found[i] for i in images], [scene.true[i] for i in images])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.integers(0, 100))
def test_weights_are_copies_of_images(seed: int, draw_seed: int) -> None:
    detections, truths = problem(seed, images=8)
    g = np.random.default_rng(seed)
    for detection in detections:  # with equal scores, copies could come in another order
        detection["scores"] = torch.tensor(g.random(len(detection["scores"])))
    scene = make_scene(detections, truths)
    draw = np.random.default_rng(draw_seed).integers(0, 8, 8)
    weights = np.bincount(draw, minlength=8)[None].astype(float)
    # thresholds and areas share what is counted before a hit: all of them
    thresholds, areas = [0.5, 0.75, 0.9], [AREAS["all"], AREAS["small"], AREAS["medium"], AREAS["large"]]
    again = repeated(scene, draw)
    for label in range(3):
        found = drawn_precision(match_class(scene, label, thresholds, areas), weights)
        copies = match_class(again, label, thresholds, areas)
        for t, a in np.ndindex(3, 4):
            np.testing.assert_allclose(found[t, a, 0], precision_curve(copies, t, a).mean(), atol=1e-12)


def test_average_precision_by_hand() -> None:
    # hits at ranks 1 and 3 of two boxes: precision 1 up to recall .5 (51 of 101 recalls), 2/3 beyond
    hit = np.asarray([True, False, True])
    assert average_precision(hit, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # one of four boxes is found: recalls 0 to .25
    assert average_precision(np.asarray([True]), 4) == pytest.approx(26 / 101)
    assert average_precision(np.zeros(0, bool), 4) == 0
    assert np.isnan(average_precision(np.zeros(0, bool), 0))


def test_draws_without_a_box_are_undefined() -> None:
    hit = np.asarray([[[True, False, True]]])
    matches = Matches(np.asarray([0.9, 0.8, 0.7]), np.asarray([0, 1, 1]), hit, np.zeros_like(hit), np.asarray([[1, 1]]))
    weights = np.asarray([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    found = drawn_precision(matches, weights)[0, 0]
    assert found[:3] == pytest.approx([(51 + 50 * 2 / 3) / 101, 1.0, 0.5])
    assert np.isnan(found[3])
    one = dataclasses.replace(matches, positives=np.asarray([[1, 0]]))
    assert np.isnan(drawn_precision(one, weights)[0, 0, 2])


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    matches = match_class(make_scene(*problem(5)), 0, [0.5, 0.75], list(AREAS.values()))
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=17)
    whole = drawn_precision(matches, weights)
    monkeypatch.setattr(precision, "_CELLS", 3 * matches.hit.shape[-1])  # three draws at once
    np.testing.assert_array_equal(drawn_precision(matches, weights), whole)


def test_many_boxes_and_few_detections_are_held_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hit = np.asarray([[[True]]])
    matches = Matches(np.asarray([0.9]), np.asarray([0]), hit, np.zeros_like(hit), np.asarray([[30, 20]]))
    weights = np.asarray([[1.0, 1.0]] * 7)
    held: list[int] = []

    def of_area(matches: Matches, area: int, drawn: Any) -> Any:
        held.append(drawn.shape[1])
        return whole(matches, area, drawn)

    whole = precision._of_area
    monkeypatch.setattr(precision, "_of_area", of_area)
    monkeypatch.setattr(precision, "_CELLS", 3 * 50)  # three draws of 50 boxes; of the one detection, all seven
    found = drawn_precision(matches, weights)
    assert held == [3, 3, 1]
    assert found[0, 0] == pytest.approx(np.full(7, 3 / 101))  # recalls 0, .01 and .02


def one_after_the_other(overlap: Any, ignored: Any, many: Any, threshold: float) -> list[int]:
    """The rule in plain words, for one threshold and one range of area."""
    free, taken = set(range(overlap.shape[1])), []
    for row in overlap:
        fits = [g for g in sorted(free) if row[g] >= threshold]
        counts = [g for g in fits if not ignored[g]] or fits
        best = max(counts, key=lambda g: (row[g], g), default=-1)
        taken.append(best)
        if best >= 0 and not many[best]:
            free.remove(best)
    return taken


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_many_groups_at_once_match_as_each_alone(seed: int) -> None:
    g = np.random.default_rng(seed)
    overlaps = [g.integers(0, 5, g.integers(0, 6, 2)) / 4 for _ in range(4)]  # many equal ones
    boxes = np.cumsum([0, *(o.shape[1] for o in overlaps)])
    found = np.cumsum([0, *(o.shape[0] for o in overlaps)])
    ignored, many = g.random((2, boxes[-1])) < 0.3, g.random(boxes[-1]) < 0.2
    thresholds = np.asarray([0.2, 0.5, 1.0])
    group = np.repeat(np.arange(4), np.diff(found))
    d, b = pairs(group, np.repeat(np.arange(4), np.diff(boxes)))
    sizes = np.concatenate([np.zeros(0), *(o.ravel() for o in overlaps)])
    together = greedy_pairs(Pairs(d, b, sizes), group, ignored, many, thresholds)
    for k, overlap in enumerate(overlaps):
        mine = slice(boxes[k], boxes[k + 1])
        alone = greedy(overlap, ignored[:, mine], many[mine], thresholds)
        here = together[..., found[k] : found[k + 1]]
        np.testing.assert_array_equal(alone, np.where(here >= 0, here - boxes[k], -1))
        for t, a in np.ndindex(3, 2):
            assert alone[t, a].tolist() == one_after_the_other(overlap, ignored[a, mine], many[mine], thresholds[t])


def test_iou_of_pairs_is_that_of_pycocotools_to_the_last_digit() -> None:
    scene = make_scene(*problem(3, images=60))
    for found, true in zip(scene.found, scene.true):
        overlap = iou(found, true)
        d, b = np.indices(overlap.shape).reshape(2, -1)
        np.testing.assert_array_equal(iou_pairs(found.of(d), true.of(b)), overlap.ravel())


def test_at_most_a_hundred_and_the_last_of_equals() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    found = {"boxes": box.repeat(130, 1), "labels": torch.zeros(130).long(), "scores": torch.linspace(1, 0.1, 130)}
    truth = {"boxes": box.repeat(2, 1), "labels": torch.zeros(2).long()}
    matches = match_class(make_scene([found], [truth]), 0, [0.5])
    assert matches.hit.shape == (1, 1, 100)
    assert matches.hit[0, 0].tolist() == [True, True, *[False] * 98]
    assert matches.positives.tolist() == [[2]]


def test_nothing_at_all() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    scene = make_scene([empty], [{k: empty[k] for k in ("boxes", "labels")}])
    assert scene.labels == []
    assert match_class(scene, 0, [0.5]).hit.shape == (1, 1, 0)
    with pytest.raises(ValueError, match="1 detections and 0 ground truths"):
        make_scene([empty], [])


def test_python_does_no_more_work_for_more_images() -> None:
    def calls(images: int) -> int:
        scene = make_scene(*problem(0, images))
        assert len(scene.flat) == 2  # laid out once for all classes, image by image
        count = 0

        def watch(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(watch)
        try:
            match_class(scene, 0, IOU_THRESHOLDS, list(AREAS.values()), {1, 2})
        finally:
            sys.setprofile(None)
        return count

    assert calls(400) < 2 * calls(50)
