from __future__ import annotations

from typing import Any

import torch

from detkd.evaluation.changes import judge_images, most_changed
from detkd.evaluation.matching import make_scene

TRUTH = {
    "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 90, 90]]),
    "labels": torch.tensor([0, 1, 0]),
    "iscrowd": torch.tensor([0, 0, 1]),
}


def found(*rows: tuple[float, float, float, float, int, float]) -> dict[str, Any]:
    return {
        "boxes": torch.tensor([r[:4] for r in rows]).float().reshape(-1, 4),
        "labels": torch.tensor([r[4] for r in rows]).long(),
        "scores": torch.tensor([r[5] for r in rows]),
    }


RIGHT, WRONG, CROWD = (0, 0, 10, 10, 0, 0.9), (20, 0, 30, 10, 0, 0.8), (60, 60, 70, 70, 0, 0.7)


def test_counts_of_an_image() -> None:
    faint, unknown = (20, 0, 30, 10, 1, 0.2), (0, 0, 10, 10, 5, 0.9)
    judged = judge_images(make_scene([found(faint, CROWD, WRONG, RIGHT, unknown)], [TRUTH]))[0]
    assert judged.found.labels.tolist() == [0, 0, 0]
    assert judged.right.tolist() == [True, False, False]
    assert judged.left_out.tolist() == [False, False, True]
    assert judged.counts == (1, 1, 1)
    assert judged.balance == -1
    assert judge_images(make_scene([found(faint)], [TRUTH]), score=0.1)[0].counts == (1, 0, 1)
    assert judge_images(make_scene([found()], [TRUTH]))[0].counts == (0, 0, 2)


def test_most_changed_first() -> None:
    truths = [TRUTH] * 3
    first = judge_images(make_scene([found(), found(RIGHT), found(WRONG)], truths))
    second = judge_images(make_scene([found(RIGHT), found(RIGHT), found()], truths))
    third = judge_images(make_scene([found(WRONG), found(WRONG), found(WRONG)], truths))
    assert most_changed(first, [second]) == [(0, 2), (2, 1), (1, 0)]
    assert most_changed(first, [second, third]) == [(1, -3), (0, 2), (2, 1)]
    assert most_changed(first, []) == [(0, 0), (1, 0), (2, 0)]
