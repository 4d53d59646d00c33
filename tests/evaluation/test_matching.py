from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkd.evaluation.coco import IOU_THRESHOLDS, score
from detkd.evaluation.matching import AREAS, Scene, make_scene, match_class
from detkd.evaluation.precision import average_precision, matched_precision, precision_curve, weighted_precision

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
            weighted[k, a, t] = matched_precision(matches, t, a, once)[0]
    np.testing.assert_allclose(direct, weighted, atol=1e-12)
    expected = [scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large]
    parts = [direct[:, 0], direct[:, 0, 0], direct[:, 0, 5], *(direct[:, a] for a in (1, 2, 3))]
    found = [None if np.isnan(part).all() else np.nanmean(part) for part in parts]
    assert found == pytest.approx(expected, abs=1e-6)


def repeated(scene: Scene, draw: Any) -> Scene:
    images = [int(i) for i in draw]
    found, true = [scene.found[i] for i in images], [scene.true[i] for i in images]
    places = {label: [n for n, i in enumerate(images) if i in of] for label, of in scene.images_of.items()}
    return Scene(found, true, places)


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
    for label in range(3):
        matches = match_class(scene, label, [0.5])
        expected = precision_curve(match_class(repeated(scene, draw), label, [0.5])).mean()
        np.testing.assert_allclose(matched_precision(matches, 0, 0, weights)[0], expected, atol=1e-12)


def test_average_precision_by_hand() -> None:
    # hits at ranks 1 and 3 of two boxes: precision 1 up to recall .5 (51 of 101 recalls), 2/3 beyond
    hit = np.asarray([True, False, True])
    assert average_precision(hit, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # one of four boxes is found: recalls 0 to .25
    assert average_precision(np.asarray([True]), 4) == pytest.approx(26 / 101)
    assert average_precision(np.zeros(0, bool), 4) == 0
    assert np.isnan(average_precision(np.zeros(0, bool), 0))


def test_draws_without_a_box_are_undefined() -> None:
    image, hit = np.asarray([0, 1, 1]), np.asarray([True, False, True])
    weights = np.asarray([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    found = weighted_precision(image, hit, np.asarray([1, 1]), weights)
    assert found[:3] == pytest.approx([(51 + 50 * 2 / 3) / 101, 1.0, 0.5])
    assert np.isnan(found[3])
    assert np.isnan(weighted_precision(image, hit, np.asarray([1, 0]), weights)[2])


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
