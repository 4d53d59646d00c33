from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.detectors.torchvision import FCOS, SSD, FasterRCNN, RetinaNet
from detkd.errors import InputError
from detkd.losses.prediction import PredictionImitation, softmax_kl, softmax_to_sigmoid
from detkd.losses.rois import on_objects, select_sites
from detkd.losses.step import Step
from detkd.structures import Target

SMALL: dict[str, Any] = {"classes": ("cat", "dog"), "image_size": (64, 64), "backbone": "resnet18", "width": 0.25}
ROI: dict[str, Any] = {"channels": 16, "anchor_size": 8, "roi_width": 32, "proposals": 24, "train_proposals": 24}
STUDENTS: dict[str, Any] = {
    "faster_rcnn": lambda: FasterRCNN(**SMALL, **ROI),
    "retinanet": lambda: RetinaNet(**SMALL, channels=24, anchor_size=8),
    "fcos": lambda: FCOS(**SMALL, channels=24),
}


def logits(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (2 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum()


def kl_reference(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """By loops, in float64."""
    total = 0.0
    for s, t in zip(student.double().numpy(), teacher.double().numpy()):
        p_s, p_t = softmax(s / temperature), softmax(t / temperature)
        total += sum(float(b * np.log(b / a)) for a, b in zip(p_s, p_t)) * temperature**2
    return total / max(len(student), 1)


def sigmoid_reference(student: Tensor, teacher: Tensor) -> float:
    """As the paper writes it: softmax with a background logit, divided by its maximum, background left out."""
    total = 0.0
    for s, t in zip(student.double().numpy(), teacher.double().numpy()):
        p_s, p_t = softmax(np.concatenate([[0.0], s])), softmax(t)
        normalised = (p_s / p_s.max())[1:]
        total -= sum(float(b * np.log(a)) for a, b in zip(normalised, p_t[1:]))
    return total / max(len(student), 1)


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (30, 80)])
def test_equal_the_formulas_in_float64(rows: int, classes: int) -> None:
    teacher = logits(rows, 1 + classes, 1)
    for temperature in (1.0, 3.0):
        student = logits(rows, 1 + classes, 0)
        expected = kl_reference(student, teacher, temperature)
        assert softmax_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-6)
    student = logits(rows, classes, 0)
    assert softmax_to_sigmoid(student, teacher).item() == pytest.approx(sigmoid_reference(student, teacher), rel=1e-6)


def test_known_values() -> None:
    sure = torch.tensor([[-60.0, 60.0, -60.0]])  # class 0
    # the student's highest is class 1: log P(0) = 1 - 4; its highest is background: log P(0) = -2 - 0
    assert softmax_to_sigmoid(torch.tensor([[1.0, 4.0]]), sure).item() == pytest.approx(3)
    assert softmax_to_sigmoid(torch.tensor([[-2.0, -4.0]]), sure).item() == pytest.approx(2)
    assert softmax_to_sigmoid(torch.tensor([[5.0, -4.0]]), sure).item() == pytest.approx(0)
    assert softmax_to_sigmoid(torch.tensor([[1e4, -1e4]]), sure.flip(1)).isfinite()
    assert softmax_kl(torch.zeros(1, 3), sure).item() == pytest.approx(np.log(3), rel=1e-5)


def test_zero_when_equal_and_the_gradient_of_cross_entropy() -> None:
    student, teacher = logits(6, 4, 0).requires_grad_(), logits(6, 4, 1)
    assert softmax_kl(student, student).item() == pytest.approx(0, abs=1e-12)
    (ours,) = torch.autograd.grad(softmax_kl(student, teacher), student)
    cross = torch.nn.functional.cross_entropy(student, teacher.softmax(1))
    torch.testing.assert_close(ours, torch.autograd.grad(cross, student)[0])


def test_gradient() -> None:
    student, teacher = logits(6, 4, 0).requires_grad_(), logits(6, 4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: softmax_kl(s, teacher, 2.0), (student,))
    assert torch.autograd.gradcheck(lambda s: softmax_to_sigmoid(s[:, 1:], teacher), (student,))
    (softmax_kl(student, teacher) + softmax_to_sigmoid(student[:, 1:], teacher)).backward()
    assert teacher.grad is None


def test_no_boxes_give_zero() -> None:
    student = logits(2, 3, 0).requires_grad_()
    total = softmax_kl(student[:0], logits(0, 3, 1)) + softmax_to_sigmoid(student[:0, 1:], logits(0, 3, 1))
    assert total.item() == 0
    total.backward()


def test_float32_inside_autocast() -> None:
    student, teacher = logits(6, 4, 0, torch.bfloat16), logits(6, 4, 1, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = softmax_kl(student, teacher), softmax_to_sigmoid(student[:, 1:], teacher)
    assert all(v.dtype == torch.float32 for v in found)
    assert found[0].item() == pytest.approx(kl_reference(student, teacher, 1.0), rel=1e-5)
    assert found[1].item() == pytest.approx(sigmoid_reference(student[:, 1:], teacher), rel=1e-5)


def test_sites_are_a_quarter_positive_and_the_best_scored() -> None:
    truth = Target(boxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([0]))
    none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    on, off, flat = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [5.0, 5, 5, 9]
    boxes = torch.tensor([[on, off, on, off, flat, on, off, off]] * 2)
    scores = torch.tensor([[1.0, 5, 3, 4, 99, 2, 7, 6]] * 2)
    first, second = select_sites(boxes, scores, [truth, none], 8, 0.5)
    assert first.tolist() == [2, 5, 6, 7, 1, 3]  # two positives, all four negatives
    assert second.tolist() == [6, 7, 1]  # without an object every box is negative
    assert [i.tolist() for i in select_sites(boxes, scores, [truth, none], 2, 0.5)] == [[2, 6], [6, 7]]


def made(kind: str) -> tuple[Any, Any, Tensor, list[Target]]:
    torch.manual_seed(0)
    student, teacher = STUDENTS[kind]().eval(), FasterRCNN(**SMALL, **ROI).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    wanted = Target(boxes=torch.tensor([[4.0, 4, 28, 28]]), labels=torch.tensor([1]))
    return student, teacher, images, [wanted, Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))]


@pytest.mark.parametrize("kind", STUDENTS)
def test_term_reads_boxes_of_both(kind: str) -> None:
    student, teacher, images, wanted = made(kind)
    step = Step(images, wanted, teacher, teacher(images), student, student(images))
    term = PredictionImitation(per_image=16)
    term.setup(student, teacher)
    value = term(step)["prediction"]
    mine, theirs = step.student_prediction, step.teacher_prediction
    assert mine is not None
    assert theirs is not None
    if kind == "faster_rcnn":
        boxes = [b[:16] for b in teacher.propose(theirs)]
        said = student.roi_head(student.pool(mine, boxes)).logits.detach()
        expected = kl_reference(said, teacher.roi_head(teacher.pool(theirs, boxes)).logits.detach(), 1.0)
    else:
        scores = mine.raw["cls"].detach().amax(2)
        sites = select_sites(student.boxes(mine), scores, wanted, 16, 0.5)
        boxes = [b[i] for b, i in zip(student.boxes(mine), sites)]
        said = torch.cat([z[i] for z, i in zip(mine.raw["cls"].detach(), sites)])
        assert on_objects(boxes, wanted, 0.5).any() or kind == "fcos"
        expected = sigmoid_reference(said, teacher.roi_head(teacher.pool(theirs, boxes)).logits.detach())
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert value > 0
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())


@pytest.mark.parametrize("kind", STUDENTS)
def test_finite_without_objects_and_without_labels(kind: str) -> None:
    student, teacher, images, wanted = made(kind)
    for targets in ([wanted[1]] * 2, None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step = Step(images, targets, teacher, teacher(images), student, student(images))
            value = PredictionImitation(per_image=16)(step)["prediction"]
        assert value.dtype == torch.float32
        assert torch.isfinite(value)


def test_setup_and_options() -> None:
    _, teacher, _, _ = made("fcos")
    term = PredictionImitation()
    ssd = SSD("ssdlite320_mobilenet_v3_large", ("cat", "dog"), (96, 96))
    with pytest.raises(InputError, match=r"loss 'prediction': .* found a SSD.*: .*FasterRCNN, .*FCOS, RetinaNet"):
        term.setup(ssd, teacher)
    with pytest.raises(InputError, match="expected a teacher with a RoI head"):
        term.setup(STUDENTS["fcos"](), STUDENTS["retinanet"]())
    with pytest.raises(InputError, match="found no student"):
        term.setup(None, teacher)
    other: dict[str, Any] = SMALL | {"classes": ("cat", "cow")}
    with pytest.raises(InputError, match="expected the same classes"):
        term.setup(FCOS(**other, channels=24), teacher)
    for bad in ({"temperature": 0.0}, {"iou": 0.0}, {"per_image": 0}):
        (name,) = bad
        with pytest.raises(InputError, match=rf"loss.prediction.{name}"):
            PredictionImitation(**bad)  # type: ignore[arg-type]
