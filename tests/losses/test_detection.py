from __future__ import annotations

from typing import Any

import pytest
import torch

from detkd.errors import InputError
from detkd.losses.detection import DetectionLoss
from detkd.losses.step import Step


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


TARGETS = [
    {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def test_is_the_students_own_loss_by_part(tiny_detector: Any, images: torch.Tensor) -> None:
    student, teacher = tiny_detector(), tiny_detector()
    prediction = student(images)
    step = Step(
        images, TARGETS, teacher=teacher, teacher_prediction=teacher(images), student=student, student_prediction=prediction
    )
    parts = DetectionLoss()(step)
    expected = student.loss(prediction, TARGETS)
    assert parts.keys() == expected.keys() == {"box", "obj", "cls"}
    assert all(torch.equal(parts[name], expected[name]) for name in parts)


def test_without_student_it_is_the_teachers_and_reaches_the_pixels(tiny_detector: Any, images: torch.Tensor) -> None:
    teacher = tiny_detector().eval().requires_grad_(False)
    images.requires_grad_()
    parts = DetectionLoss()(Step(images, TARGETS, teacher=teacher, teacher_prediction=teacher(images)))
    sum(parts.values()).backward()
    assert images.grad is not None
    assert images.grad[0].abs().sum() > 0


def test_images_without_boxes_give_a_finite_loss(tiny_detector: Any, images: torch.Tensor) -> None:
    student = tiny_detector()
    parts = DetectionLoss()(Step(images, TARGETS[1:] * 2, student=student, student_prediction=student(images)))
    assert parts["box"] == 0
    assert parts["obj"] > 0
    assert all(torch.isfinite(part) for part in parts.values())


def test_without_targets_it_says_where_labels_come_from(tiny_detector: Any, images: torch.Tensor) -> None:
    student = tiny_detector()
    with pytest.raises(InputError, match=r"labels=none.*labels=real.*labels=teacher"):
        DetectionLoss()(Step(images, student=student, student_prediction=student(images)))
