from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detkd.detectors.torchvision import FCOS, SSD, FasterRCNN, RetinaNet
from detkd.errors import InputError
from detkd.losses.sgfi import SGFI, level_weights, sgfi_loss
from detkd.losses.step import Step
from detkd.structures import Target

SMALL: dict[str, Any] = {"image_size": (64, 64), "backbone": "resnet18", "width": 0.25}
ROI: dict[str, Any] = {"anchor_size": 8, "roi_width": 32, "proposals": 24, "train_proposals": 24}
STUDENTS: dict[str, Any] = {
    "faster_rcnn": lambda: FasterRCNN(classes=("cow",), channels=16, **SMALL, **ROI),  # classes may differ
    "retinanet": lambda: RetinaNet(classes=("cat", "dog"), channels=24, anchor_size=8, **SMALL),
    "fcos": lambda: FCOS(classes=("cat", "dog"), channels=24, **SMALL),
}


def data(rows: int, levels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    student = torch.randn(rows, levels, 3, 2, 4, generator=g, dtype=torch.float64)
    teacher = torch.randn(rows, 3, 2, 4, generator=g, dtype=torch.float64)
    keys, key = (
        torch.randn(rows, levels, 5, generator=g, dtype=torch.float64),
        torch.randn(rows, 5, generator=g, dtype=torch.float64),
    )
    return student.to(dtype), teacher.to(dtype), keys.to(dtype), key.to(dtype)


def reference(student: Tensor, teacher: Tensor, keys: Tensor, key: Tensor, temperature: float) -> float:
    """By loops over boxes and levels, in float64."""
    s, t, k, q = (v.double().numpy() for v in (student, teacher, keys, key))
    total = 0.0
    for i in range(len(s)):
        likeness = np.array([np.exp(np.dot(k[i, level], q[i]) / temperature) for level in range(s.shape[1])])
        merged = sum(likeness[level] / likeness.sum() * s[i, level] for level in range(s.shape[1]))
        total += float(np.mean((merged - t[i]) ** 2))
    return total / max(len(s), 1)


@pytest.mark.parametrize(("rows", "levels"), [(1, 1), (6, 4), (9, 5)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equals_the_formula_in_float64(rows: int, levels: int, temperature: float) -> None:
    student, teacher, keys, key = data(rows, levels)
    weights = level_weights(keys, key, torch.tensor(temperature, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(1), torch.ones(rows, dtype=torch.float64))
    expected = reference(student, teacher, keys, key, temperature)
    assert sgfi_loss(student, teacher, weights).item() == pytest.approx(expected, rel=1e-6)


def test_known_value_the_level_that_is_alike_counts() -> None:
    keys, key = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]), torch.tensor([[0.0, 9.0]])
    weights = level_weights(keys, key, torch.tensor(1.0))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0]]))
    student = torch.stack([torch.full((1, 2, 7, 7), 5.0), torch.full((1, 2, 7, 7), 3.0)], 1)
    assert sgfi_loss(student, torch.zeros(1, 2, 7, 7), weights).item() == pytest.approx(9)


def test_gradient() -> None:
    student, teacher, keys, key = (v.requires_grad_() for v in data(4, 3))
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def loss(s: Tensor, k: Tensor, q: Tensor, tau: Tensor) -> Tensor:
        return sgfi_loss(s, teacher, level_weights(k, q, tau))

    assert torch.autograd.gradcheck(loss, (student, keys, key, temperature))
    loss(student, keys, key, temperature).backward()
    assert teacher.grad is None


def test_zero_when_every_level_is_the_teachers_and_without_boxes() -> None:
    student, teacher, keys, key = data(4, 3)
    weights = level_weights(keys, key, torch.tensor(1.0, dtype=torch.float64))
    assert sgfi_loss(teacher[:, None].expand_as(student), teacher, weights).item() == pytest.approx(0, abs=1e-12)
    student.requires_grad_()
    nothing = sgfi_loss(student[:0], teacher[:0], weights[:0])
    assert nothing.item() == 0
    nothing.backward()


def test_float32_inside_autocast() -> None:
    student, teacher, keys, key = data(4, 3, torch.bfloat16)
    weights = level_weights(keys.float(), key.float(), torch.tensor(1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sgfi_loss(student, teacher, weights)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reference(student, teacher, keys, key, 1.0), rel=1e-4)


def no_boxes() -> Target:
    return Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


def made(kind: str) -> tuple[SGFI, Any, Any, Step]:
    torch.manual_seed(0)
    student = STUDENTS[kind]().eval()
    teacher = FasterRCNN(classes=("cat", "dog"), channels=32, **SMALL, **ROI).eval()
    term = SGFI(per_image=8)
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    wanted = [Target(boxes=torch.tensor([[4.0, 4, 28, 28]]), labels=torch.tensor([0])), no_boxes()]
    return term, student, teacher, Step(images, wanted, teacher, teacher(images), student, student(images))


@pytest.mark.parametrize("kind", STUDENTS)
def test_term_is_the_formula_on_pooled_features(kind: str) -> None:
    term, student, teacher, step = made(kind)
    value = term(step)["sgfi"]
    assert step.student_prediction is not None
    assert step.teacher_prediction is not None
    boxes = term._boxes(step)
    assert all(0 < len(b) <= 8 for b in boxes)
    with torch.no_grad():
        theirs = teacher.pool(step.teacher_prediction, boxes)
        if kind == "faster_rcnn":
            mine = student.pool(step.student_prediction, boxes, level="all")
            assert mine.shape[1] == 4
        else:
            maps = step.student_prediction.features
            mine = torch.stack([roi_align(maps[f"p{i}"], boxes, 7, 1 / 2**i, 2) for i in range(3, 8)], 1)
            assert mine.shape[1] == 5
        adapted = torch.stack([term.adapter(level) for level in mine.unbind(1)], 1)
        keys, key = torch.stack([term.embed(level) for level in adapted.unbind(1)], 1), term.embed(theirs)
    assert key.shape[1] == 8 * 2 * 2
    assert value.item() == pytest.approx(reference(adapted, theirs, keys, key, 1.0), rel=1e-4)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_dense_teacher_is_read_at_the_level_of_the_boxs_size(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    student, teacher = STUDENTS[kind]().eval(), RetinaNet(classes=("cat",), channels=32, anchor_size=8, **SMALL).eval()
    term = SGFI(per_image=8)
    term.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    step = Step(images, None, teacher, teacher(images), student, student(images))
    assert step.teacher_prediction is not None
    assert step.student_prediction is not None
    boxes = [torch.tensor([[0.0, 0, 60, 60], [0, 0, 120, 120], [4, 4, 20, 300]]), torch.tensor([[0.0, 0, 230, 230]])]
    levels = [("p3", 8), ("p3", 8), ("p3", 8), ("p4", 16)]  # below 224 pixels the finest there is
    monkeypatch.setattr(term, "_boxes", lambda _: boxes)
    value = term(step)["sgfi"]
    rois = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in enumerate(boxes)])  # (R, 5)
    with torch.no_grad():
        maps = step.teacher_prediction.features
        theirs = torch.cat([roi_align(maps[name], row[None], 7, 1 / stride, 2) for row, (name, stride) in zip(rois, levels)])
        own = step.student_prediction.features
        mine = torch.stack([roi_align(own[f"p{i}"], rois, 7, 1 / 2**i, 2) for i in range(3, 8)], 1)
        adapted = torch.stack([term.adapter(level) for level in mine.unbind(1)], 1)
        keys, key = torch.stack([term.embed(level) for level in adapted.unbind(1)], 1), term.embed(theirs)
    assert value.item() == pytest.approx(reference(adapted, theirs, keys, key, 1.0), rel=1e-4)
    monkeypatch.undo()
    term(step)["sgfi"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in term.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())


@pytest.mark.parametrize("kind", STUDENTS)
def test_gradient_reaches_student_and_term_alone(kind: str) -> None:
    term, student, teacher, step = made(kind)
    term(step)["sgfi"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in term.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    assert len(list(term.parameters())) == 1 + 2 + 4


def test_finite_without_objects_labels_or_proposals_and_in_bfloat16() -> None:
    term, student, teacher, step = made("retinanet")
    for targets in ([no_boxes()] * 2, None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images = step.images
            value = term(Step(images, targets, teacher, teacher(images), student, student(images)))["sgfi"]
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
    term, student, teacher, step = made("faster_rcnn")
    teacher.model.rpn.score_thresh = 1.1
    nothing = term(step)["sgfi"]
    assert nothing.item() == 0
    nothing.backward()


def test_setup_leaves_detectors_alone_and_says_what_is_missing() -> None:
    torch.manual_seed(0)
    student, teacher = STUDENTS["faster_rcnn"]().train(), FasterRCNN(classes=("cat",), channels=32, **SMALL, **ROI).eval()
    before = copy.deepcopy(student.state_dict())
    SGFI().setup(student, teacher)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert student.training
    with pytest.raises(InputError, match=r"loss 'sgfi': expected a teacher with a RoI head.*FasterRCNN"):
        SGFI().setup(student, STUDENTS["fcos"]())  # a dense teacher serves dense students alone
    with pytest.raises(InputError, match=r"loss 'sgfi': .* found a SSD.*: .*FasterRCNN, .*FCOS, RetinaNet"):
        SGFI().setup(SSD("ssdlite320_mobilenet_v3_large", ("cat",), (96, 96)), teacher)
    with pytest.raises(InputError, match=r"loss.sgfi.per_image"):
        SGFI(per_image=0)
    with pytest.raises(InputError, match=r"loss.sgfi.iou"):
        SGFI(iou=2.0)


def test_levels_are_weighed_in_float32_under_autocast() -> None:
    student, teacher = torch.randn(3, 2, 256), torch.randn(3, 256)
    with torch.autocast("cpu", torch.bfloat16):
        weights = level_weights(student, teacher, torch.tensor(1.0))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, level_weights(student, teacher, torch.tensor(1.0)))
