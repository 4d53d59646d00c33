from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.detectors.torchvision import FCOS, FasterRCNN
from detkd.errors import InputError
from detkd.losses.careg import ClassAwareRegression, careg_loss
from detkd.losses.defeat_proposals import DeFeatProposals
from detkd.losses.rois import on_objects
from detkd.losses.step import Step
from detkd.structures import Target

SMALL: dict[str, Any] = {"classes": ("cat", "dog"), "image_size": (64, 64), "backbone": "resnet18", "width": 0.25}
ROI: dict[str, Any] = {"channels": 16, "anchor_size": 8, "roi_width": 32, "proposals": 24, "train_proposals": 24}


def data(rows: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, classes, 4, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    logits = (2 * torch.randn(rows, 1 + classes, generator=g, dtype=torch.float64)).to(dtype)
    return student, teacher, logits, torch.arange(rows) % 3 != 1


def reference(student: Tensor, teacher: Tensor, logits: Tensor, positive: Tensor, class_aware: bool) -> float:
    """By loops over proposals, corrections and classes, in float64."""
    s, t, z = (v.double().numpy() for v in (student, teacher, logits))
    total, count = 0.0, 0
    for i in np.flatnonzero(positive.numpy()):
        p = np.exp(z[i]) / np.exp(z[i]).sum()
        for k in range(4):
            differences = [t[i, c, k] - s[i, c, k] for c in range(s.shape[1])]
            if class_aware:
                total += abs(sum(p[1 + c] * d for c, d in enumerate(differences)))
            else:
                total += sum(abs(d) for d in differences) / len(differences)
        count += 1
    return total / max(count, 1)


@pytest.mark.parametrize("class_aware", [True, False])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (30, 80)])
def test_equals_the_formula_in_float64(rows: int, classes: int, class_aware: bool) -> None:
    found = careg_loss(*data(rows, classes), class_aware)
    assert found.item() == pytest.approx(reference(*data(rows, classes), class_aware), rel=1e-6)


def test_known_value_of_a_teacher_that_is_sure() -> None:
    student, teacher = torch.zeros(1, 2, 4), torch.tensor([[[1.0, -2, 3, 4], [100, 100, 100, 100]]])
    logits = torch.tensor([[-50.0, 50.0, -50.0]])
    assert careg_loss(student, teacher, logits, torch.tensor([True])).item() == pytest.approx(10)
    background = torch.tensor([[50.0, -50.0, -50.0]])
    assert careg_loss(student, teacher, background, torch.tensor([True])).item() == pytest.approx(0)


@pytest.mark.parametrize("class_aware", [True, False])
def test_gradient(class_aware: bool) -> None:
    student, teacher, logits, positive = data(5, 3)
    student, teacher, logits = (v.requires_grad_() for v in (student, teacher, logits))
    assert torch.autograd.gradcheck(lambda s: careg_loss(s, teacher, logits, positive, class_aware), (student,))
    careg_loss(student, teacher, logits, positive, class_aware).backward()
    assert teacher.grad is None
    assert logits.grad is None
    assert student.grad is not None
    assert student.grad[~positive].abs().max() == 0


def test_zero_when_equal_and_without_positives() -> None:
    student, teacher, logits, positive = data(5, 3)
    assert careg_loss(student, student, logits, positive) == 0
    student.requires_grad_()
    nothing = careg_loss(student, teacher, logits, torch.zeros(5, dtype=torch.bool))
    nothing = nothing + careg_loss(student[:0], teacher[:0], logits[:0], positive[:0])
    assert nothing.item() == 0
    nothing.backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_float32_inside_autocast() -> None:
    values = data(5, 3, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = careg_loss(*values)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reference(*values, True), rel=1e-5)


def test_term_on_the_teachers_proposals_which_other_terms_share() -> None:
    calls = []

    class Counting(FasterRCNN):
        def roi_head(self, pooled: Tensor, stage: int = 0) -> Any:
            calls.append(len(pooled))
            return super().roi_head(pooled)

    torch.manual_seed(0)
    student, teacher = Counting(**SMALL, **ROI).train(), FasterRCNN(**SMALL, **ROI).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    seen = teacher(images)
    boxes = [b[:10] for b in teacher.propose(seen)]
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    wanted = [Target(boxes=boxes[0][[0, 5]], labels=torch.tensor([0, 1])), empty]
    step = Step(images, wanted, teacher, seen, student, student(images))
    term = ClassAwareRegression(per_image=10)
    term.setup(student, teacher)
    value = term(step)["careg"]
    DeFeatProposals(per_image=10)(step)
    assert calls == [20]
    mine = student.roi_head(student.pool(step.student_prediction, boxes)).deltas  # type: ignore[arg-type]
    theirs = teacher.roi_head(teacher.pool(seen, boxes))
    positive = on_objects(boxes, wanted, 0.5)
    expected = reference(mine.detach(), theirs.deltas.detach(), theirs.logits.detach(), positive, True)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert value.dtype == torch.float32
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    assert term(Step(images, [empty] * 2, teacher, seen, student, student(images)))["careg"] == 0


def test_setup_and_options() -> None:
    torch.manual_seed(0)
    dense, two = FCOS(**SMALL, channels=24), FasterRCNN(**SMALL, **ROI)
    with pytest.raises(InputError, match=r"loss 'careg': expected a student with a RoI head.*FasterRCNN"):
        ClassAwareRegression().setup(dense, two)
    with pytest.raises(InputError, match=r"loss.careg.iou: expected a number in \(0, 1\]"):
        ClassAwareRegression(iou=1.5)
    with pytest.raises(InputError, match=r"loss.careg.per_image"):
        ClassAwareRegression(per_image=0)
