from __future__ import annotations

import numpy as np
import pytest
import torch

from detkd.evaluation.calibration import judged_scores, reliability
from detkd.evaluation.matching import make_scene


def test_ece_by_hand() -> None:
    scores = np.asarray([0.95, 0.95, 0.55, 0.55, 0.55, 0.1])
    hit = np.asarray([True, False, True, True, False, True])
    found = reliability(scores, hit, bins=10, threshold=0.3)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 0, 2]
    assert found.precision[[5, 9]] == pytest.approx([2 / 3, 1 / 2])
    assert found.confidence[[5, 9]] == pytest.approx([0.55, 0.95])
    assert found.ece == pytest.approx(3 / 5 * abs(2 / 3 - 0.55) + 2 / 5 * 0.45)
    assert np.isnan(found.precision[0])


def test_a_calibrated_detector_has_none_and_a_sure_one_that_is_wrong_all() -> None:
    g = np.random.default_rng(0)
    scores = g.random(200_000)
    assert reliability(scores, g.random(200_000) < scores, threshold=0.0).ece == pytest.approx(0, abs=0.01)
    assert reliability(np.ones(10), np.zeros(10, bool)).ece == pytest.approx(1)
    assert reliability(np.ones(10), np.ones(10, bool)).ece == 0
    assert reliability(np.full(3, 0.3), np.ones(3, bool), threshold=0.3).counts.sum() == 3
    assert reliability(np.zeros(0), np.zeros(0, bool)).ece is None
    with pytest.raises(ValueError, match="at least one bin"):
        reliability(scores, scores > 2, bins=0)


def test_which_detections_count() -> None:
    truth = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [50, 50, 90, 90]]),
        "labels": torch.tensor([0, 0]),
        "iscrowd": torch.tensor([0, 1]),
    }
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [60, 60, 70, 70], [0, 0, 10, 9], [0, 0, 10, 10]]),
        "labels": torch.tensor([0, 0, 0, 1]),  # the crowd takes the second; there is no box of class 1
        "scores": torch.tensor([0.5, 0.75, 0.25, 0.9]),
    }
    scores, hit = judged_scores(make_scene([found], [truth]))
    assert scores.tolist() == [0.5, 0.25]
    assert hit.tolist() == [True, False]
