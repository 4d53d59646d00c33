from __future__ import annotations

import pytest
import torch

from detkd.inversion.writer import judge, quantise
from detkd.structures import Detection, Target


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def detection(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detection:
    return {**target(boxes, labels), "scores": torch.tensor(scores)}


def test_quantise_rounds_and_clamps() -> None:
    images = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2]).view(1, 1, 2, 3)
    assert quantise(images).flatten().tolist() == [0, 0, 0, 1, 255, 255]
    assert quantise(images).dtype == torch.uint8
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(quantise(levels.float() / 255), levels)


def test_judge_takes_the_best_detection_of_the_right_class() -> None:
    truth = target([[0, 0, 10, 10]], [2])
    found = detection(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [0, 0, 4, 10]],  # IoU 1, .8, .6, .4
        [1, 2, 2, 2],
        [0.99, 0.3, 0.7, 0.95],
    )
    assert judge([found], [truth]) == [{"teacher_score": 0.7, "teacher_iou": 0.8}]


def test_judge_is_the_mean_over_boxes() -> None:
    truth = target([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    found = detection([[0, 0, 10, 10]], [0], [0.9])
    assert judge([found], [truth]) == [{"teacher_score": 0.45, "teacher_iou": 0.5}]


def test_judge_without_detections_and_without_boxes() -> None:
    nothing = detection([], [], [])
    assert judge([nothing], [target([[0, 0, 10, 10]], [0])]) == [{"teacher_score": 0.0, "teacher_iou": 0.0}]
    assert judge([nothing], [target([], [])]) == [{"teacher_score": 0.0, "teacher_iou": 0.0}]
    assert judge([detection([[0, 0, 1, 1]], [0], [0.5])], [target([], [])]) == [{"teacher_score": 0.0, "teacher_iou": 0.0}]


def test_judge_wants_one_detection_an_image() -> None:
    with pytest.raises(ValueError, match="longer"):
        judge([], [target([], [])])
