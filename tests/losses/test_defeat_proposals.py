from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkd.detectors.torchvision import FCOS, FasterRCNN
from detkd.errors import InputError
from detkd.losses.defeat_proposals import DeFeatProposals, decoupled_kl
from detkd.losses.rois import on_objects, paired_rois
from detkd.losses.step import Step
from detkd.structures import Target

SMALL: dict[str, Any] = {"classes": ("cat", "dog"), "image_size": (64, 64), "backbone": "resnet18", "width": 0.25}
ROI: dict[str, Any] = {"channels": 16, "anchor_size": 8, "roi_width": 32, "proposals": 24, "train_proposals": 24}


def detector(seed: int, name: str = "fasterrcnn_resnet50_fpn", **changes: Any) -> FasterRCNN:
    torch.manual_seed(seed)
    return FasterRCNN(name, **(SMALL | ROI | changes)).eval()


@pytest.fixture(scope="module")
def pair() -> tuple[FasterRCNN, FasterRCNN]:
    return detector(0), detector(1, channels=24).requires_grad_(False)


def step(student: Any, teacher: Any, wanted: list[Target] | None) -> Step:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    return Step(images, wanted, teacher, teacher(images), student, student(images))


def no_boxes() -> Target:
    return Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


def proposed(student: Any, teacher: Any) -> list[Target]:
    """Targets on two proposals of the first image, none in the second."""
    boxes = step(student, teacher, None).proposals[0][[0, 5]]
    return [Target(boxes=boxes, labels=torch.tensor([0, 1])), no_boxes()]


def logits(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (2 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def reference(student: Tensor, teacher: Tensor, positive: Tensor, temperatures: tuple[float, float]) -> list[float]:
    """By loops over proposals and classes, in float64."""
    totals, counts = [0.0, 0.0], [0, 0]
    for s, t, is_positive in zip(student.double().numpy(), teacher.double().numpy(), positive.tolist()):
        group = 0 if is_positive else 1
        p_s, p_t = (np.exp(v / temperatures[group]) / np.exp(v / temperatures[group]).sum() for v in (s, t))
        totals[group] += sum(float(b * np.log(b / a)) for a, b in zip(p_s, p_t)) * temperatures[group] ** 2
        counts[group] += 1
    return [total / max(count, 1) for total, count in zip(totals, counts)]


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (7, 4), (40, 81)])
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 0.5)])
def test_equals_the_formula_in_float64(rows: int, columns: int, temperatures: tuple[float, float]) -> None:
    student, teacher = logits(rows, columns, 0), logits(rows, columns, 1)
    positive = torch.arange(rows) % 3 == 0
    found = decoupled_kl(student, teacher, positive, *temperatures)
    assert [v.item() for v in found] == pytest.approx(reference(student, teacher, positive, temperatures), rel=1e-6)


@pytest.mark.parametrize("positive", [True, False])
def test_an_empty_group_and_no_proposals_count_nothing(positive: bool) -> None:
    student = logits(5, 4, 0).requires_grad_()
    found = decoupled_kl(student, logits(5, 4, 1), torch.full((5,), positive))
    assert found[int(positive)] == 0
    assert found[1 - int(positive)] > 0
    nothing = decoupled_kl(student[:0], student[:0], torch.zeros(0, dtype=torch.bool))
    assert [v.item() for v in nothing] == [0, 0]
    (sum(found) + sum(nothing)).backward()  # type: ignore[union-attr]
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_zero_and_without_gradient_when_equal() -> None:
    student, positive = logits(6, 4, 0).requires_grad_(), torch.arange(6) < 2
    total = sum(decoupled_kl(student, student.detach() + 3.0, positive))  # softmax does not see the shift
    assert isinstance(total, Tensor)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_gradient() -> None:
    student, teacher, positive = logits(6, 4, 0).requires_grad_(), logits(6, 4, 1).requires_grad_(), torch.arange(6) < 2
    assert torch.autograd.gradcheck(lambda s: decoupled_kl(s, teacher, positive, 2.0, 3.0), (student,))
    sum(decoupled_kl(student, teacher, positive)).backward()  # type: ignore[union-attr]
    assert teacher.grad is None


def test_float32_inside_autocast() -> None:
    student, teacher, positive = logits(6, 4, 0, torch.bfloat16), logits(6, 4, 1, torch.bfloat16), torch.arange(6) < 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoupled_kl(student, teacher, positive)
    assert found[0].dtype == torch.float32
    assert [v.item() for v in found] == pytest.approx(reference(student, teacher, positive, (1.0, 1.0)), rel=1e-5)


def test_positives_overlap_an_object_of_their_image() -> None:
    boxes = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9]]), torch.tensor([[0.0, 0, 10, 10]])]
    truth = Target(boxes=torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10]]), labels=torch.tensor([0, 0]))
    assert on_objects(boxes, [truth, no_boxes()], 0.5).tolist() == [True, True, False, False]
    flat = Target(boxes=torch.tensor([[3.0, 3, 3, 3]]), labels=torch.tensor([0]))
    assert on_objects([torch.tensor([[3.0, 3, 3, 3]]), boxes[1]], [flat, flat], 0.5).tolist() == [False, False]


def test_term_reads_both_heads_on_the_teachers_proposals(pair: tuple[FasterRCNN, FasterRCNN]) -> None:
    student, teacher = pair
    wanted = proposed(student, teacher)
    one = step(student, teacher, wanted)
    parts = DeFeatProposals(3.0, 5.0, 2.0, 4.0, per_image=10)(one)
    boxes = [b[:10] for b in teacher.propose(one.teacher_prediction)]  # type: ignore[arg-type]
    mine = student.roi_head(student.pool(one.student_prediction, boxes)).logits  # type: ignore[arg-type]
    theirs = teacher.roi_head(teacher.pool(one.teacher_prediction, boxes)).logits  # type: ignore[arg-type]
    positive = on_objects(boxes, wanted, 0.5)
    assert 2 <= int(positive.sum()) < 10
    expected = reference(mine.detach(), theirs, positive, (2.0, 4.0))
    assert parts["object"].item() == pytest.approx(3 * expected[0], rel=1e-4)
    assert parts["background"].item() == pytest.approx(5 * expected[1], rel=1e-4)
    assert set(DeFeatProposals(0.0, 5.0)(one)) == {"background"}


def test_both_heads_run_once_for_all_terms_of_a_step(pair: tuple[FasterRCNN, FasterRCNN]) -> None:
    one = step(*pair, [no_boxes()] * 2)
    assert paired_rois(one, 10) is paired_rois(one, 10)
    assert paired_rois(one.image(0), 10) is not paired_rois(one, 10)
    assert not paired_rois(one, 10)[0].teacher.logits.requires_grad
    assert paired_rois(one, 10)[0].student.logits.requires_grad


def test_without_targets_the_teachers_detections_stand_in(pair: tuple[FasterRCNN, FasterRCNN]) -> None:
    one = step(*pair, None)
    found = DeFeatProposals(score_threshold=0.0)(one)
    none = DeFeatProposals(score_threshold=0.999)(one)
    assert found["object"] > 0
    assert none["object"] == 0
    assert none["background"] > 0


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_student_in_training_learns_no_statistics_and_gets_a_gradient(name: str) -> None:
    student, teacher = detector(0, name).train(), detector(1).requires_grad_(True)
    wanted = proposed(student, teacher)
    one = step(student, teacher, wanted)
    before = copy.deepcopy(student.model.roi_heads.state_dict())
    sum(DeFeatProposals()(one).values()).backward()  # type: ignore[union-attr]
    assert all(torch.equal(v, before[k]) for k, v in student.model.roi_heads.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    grads = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(g).all() for g in grads.values())
    assert any("roi_heads" in n and g.abs().max() > 0 for n, g in grads.items())


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_a_batch_without_any_proposal_is_finite(name: str) -> None:
    student, teacher = detector(0, name).train(), detector(1)
    teacher.model.rpn.score_thresh = 1.1
    one = step(student, teacher, [no_boxes()] * 2)
    assert [len(p) for p in one.proposals] == [0, 0]
    parts = DeFeatProposals()(one)
    assert [v.item() for v in parts.values()] == [0, 0]
    sum(parts.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())


def test_setup_says_what_is_missing(pair: tuple[FasterRCNN, FasterRCNN]) -> None:
    dense = FCOS(**SMALL, channels=16)
    term = DeFeatProposals()
    term.setup(*pair)
    with pytest.raises(InputError, match=r"loss 'defeat_proposals': expected a teacher with a RoI head.*FasterRCNN"):
        term.setup(pair[0], dense)
    with pytest.raises(InputError, match="expected a student with a RoI head"):
        term.setup(dense, pair[1])
    with pytest.raises(InputError, match="expected the same classes"):
        term.setup(detector(0, classes=("cat", "cow")), pair[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"object_weight": -1.0}, "object_weight and background_weight >= 0"),
        ({"object_weight": 0.0, "background_weight": 0.0}, "one of them positive"),
        ({"object_temperature": 0.0}, "positive temperatures, got 0.0"),
        ({"iou": 0.0}, r"iou: expected a number in \(0, 1\], got 0.0"),
        ({"per_image": 0}, "per_image: expected at least 1 proposal"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DeFeatProposals(**options)
