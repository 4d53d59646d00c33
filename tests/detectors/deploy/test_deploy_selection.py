"""Which boxes enter suppression, and what is made of those that are left."""

from __future__ import annotations

import torch

from detkd.detectors.deploy.selection import (
    Candidates,
    above,
    best_of_classes,
    best_of_levels,
    best_pairs,
    keep_best,
    to_detections,
)

BOXES = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]])  # (1, 3, 4)
SCORES = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]])  # (1, 3, 2)


def test_best_pairs() -> None:
    found = best_pairs(BOXES, SCORES, 3)
    assert found.scores.tolist() == [[SCORES[0, 0, 1], SCORES[0, 1, 0], SCORES[0, 2, 1]]]
    assert found.labels.tolist() == [[1, 0, 1]]
    assert found.boxes[0, :, 2].tolist() == [1, 2, 3]
    assert best_pairs(BOXES, SCORES, 100).scores.shape == (1, 6)


def test_best_pairs_of_boxes_of_their_own() -> None:
    of_classes = torch.stack([BOXES, BOXES + 10], dim=2)  # (1, 3, 2, 4)
    found = best_pairs(of_classes, SCORES, 3)
    assert found.boxes[0, :, 0].tolist() == [10, 0, 10]
    assert found.boxes[0, :, 2].tolist() == [11, 2, 13]


def test_best_of_levels() -> None:
    found = best_of_levels(BOXES, SCORES, 1, [2, 1])
    assert found.labels.tolist() == [[1, 1]]
    assert found.boxes[0, :, 2].tolist() == [1, 3]


def test_best_of_classes() -> None:
    found = best_of_classes(BOXES, SCORES, 2)
    assert found.labels.tolist() == [[0, 0, 1, 1]]
    assert found.boxes[0, :, 2].tolist() == [2, 3, 1, 3]
    torch.testing.assert_close(found.scores, torch.tensor([[0.8, 0.3, 0.9, 0.7]]))


def test_above_takes_the_threshold_itself_out() -> None:
    assert above(torch.tensor([0.5, 0.25, 0.75]), 0.5).tolist() == [0, 0, 0.75]


def test_keep_best_pads_with_rows_that_say_so() -> None:
    apart = Candidates(
        BOXES + torch.tensor([0.0, 10, 20])[None, :, None], torch.tensor([[0.2, 0.0, 0.6]]), torch.tensor([[1, 0, 1]])
    )
    found = keep_best(apart, 2, 0.5, 5)
    assert found.labels.tolist() == [[1, 1, -1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.6, 0.2, 0.0]]))
    assert found.boxes[0, 2].tolist() == [0, 0, 0, 0]
    assert [len(d["scores"]) for d in to_detections(found)] == [2]
    assert keep_best(apart, 2, 0.5, 1).labels.tolist() == [[1]]


def test_an_image_without_any() -> None:
    none = Candidates(BOXES, torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.int64))
    found = to_detections(keep_best(none, 2, 0.5, 5))
    assert found[0]["boxes"].shape == (0, 4)
    assert found[0]["labels"].shape == found[0]["scores"].shape == (0,)
