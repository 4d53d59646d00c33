from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detkd.errors import InputError
from detkd.evaluation.feature_distance import channel_distance, comparable_level
from detkd.losses.connectors import Level
from detkd.structures import Prediction


def prediction(strides: tuple[int, ...], channels: int = 4, prefix: str = "p", side: int = 64) -> Prediction:
    features = {f"{prefix}{int(math.log2(s))}": torch.zeros(1, channels, side // s, side // s) for s in strides}
    return Prediction(raw={}, sizes=(), strides=strides, features=features, image_size=(side, side))


def test_equals_loops_and_adds_up_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, 4, 6, generator=generator) for _ in range(2))
    mask = torch.rand(3, 4, 6, generator=generator) > 0.6
    distance = np.abs(teacher.double().numpy() - student.double().numpy())
    inside, outside = np.zeros(5), np.zeros(5)
    for image in range(3):
        for row in range(4):
            for column in range(6):
                (inside if mask[image, row, column] else outside)[:] += distance[image, :, row, column]
    whole = channel_distance(student, teacher, mask)
    assert whole.cells.tolist() == [int(mask.sum()), 72 - int(mask.sum())]
    objects, background = whole.means()
    np.testing.assert_allclose(objects.numpy(), inside / int(mask.sum()), rtol=1e-12)
    np.testing.assert_allclose(background.numpy(), outside / (72 - int(mask.sum())), rtol=1e-12)
    parts = [channel_distance(student[i : i + 1], teacher[i : i + 1], mask[i : i + 1]) for i in range(3)]
    for a, b in zip(parts[0].plus(parts[1]).plus(parts[2]), whole):
        torch.testing.assert_close(a, b)


def test_a_student_that_is_its_teacher_has_no_distance() -> None:
    maps = torch.randn(1, 3, 2, 2)
    objects, background = channel_distance(maps, maps, torch.tensor([[[True, False], [False, False]]])).means()
    assert objects.tolist() == background.tolist() == [0.0] * 3


def test_a_region_without_a_cell_has_no_mean() -> None:
    objects, background = channel_distance(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).bool()).means()
    assert objects.isnan().all()
    assert background.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="two maps of one shape"):
        channel_distance(torch.ones(1, 2, 2, 2), torch.ones(1, 3, 2, 2), torch.zeros(1, 2, 2).bool())


def test_the_first_level_that_both_have() -> None:
    assert comparable_level(prediction((8, 16)), prediction((8, 16)), None, "a") == Level("p3", "p3")
    assert comparable_level(prediction((8, 16)), prediction((16, 32)), None, "a") == Level("p4", "p4")
    assert comparable_level(prediction((8, 16), prefix="c"), prediction((8, 16)), "c4", "a") == Level("c4", "p4")


def test_levels_that_cannot_be_compared() -> None:
    with pytest.raises(
        InputError, match=r"level: expected a neck level that a and the teacher both have, one of \['p4'\], found 'p3'"
    ):
        comparable_level(prediction((8, 16)), prediction((16, 32)), "p3", "a")
    with pytest.raises(InputError, match=r"level: expected a stride that a and the teacher share"):
        comparable_level(prediction((8,)), prediction((16,)), None, "a")
    with pytest.raises(InputError, match=r"found \(4, 8, 8\) and \(6, 8, 8\); distances are between the maps as they are"):
        comparable_level(prediction((8, 16)), prediction((8, 16), channels=6), None, "a")
