from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkd.detectors.torchvision import FCOS, SSD, FasterRCNN, RetinaNet
from detkd.errors import InputError
from detkd.losses.composite import Composite
from detkd.losses.contrastive import Contrastive
from detkd.losses.info_nce import Candidates, info_nce
from detkd.losses.rois import at_sites, at_strides, paired_rois, student_rois
from detkd.losses.step import Step
from detkd.structures import Prediction, Target

SMALL: dict[str, Any] = {"classes": ("cat", "dog"), "image_size": (64, 64), "backbone": "resnet18", "width": 0.25}
ROI: dict[str, Any] = {"channels": 16, "anchor_size": 8, "proposals": 24, "train_proposals": 24}
STUDENTS: dict[str, Any] = {
    "faster_rcnn": lambda: FasterRCNN(**SMALL, **ROI, roi_width=48),
    "retinanet": lambda: RetinaNet(**SMALL, channels=24, anchor_size=8),
    "fcos": lambda: FCOS(**SMALL, channels=24),
}
FEW: dict[str, Any] = {"per_image": 12, "queue": 60, "width": 8}


def made(kind: str) -> tuple[Any, Any, Tensor, list[Target]]:
    torch.manual_seed(0)
    teacher = FasterRCNN(**SMALL | {"classes": ("cat", "dog", "cow")}, **ROI, roi_width=32).eval()  # classes may differ
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    wanted = [Target(boxes=torch.tensor([[8.0, 8, 30, 40]]), labels=torch.tensor([1])), empty]
    return STUDENTS[kind]().train(), teacher, images, wanted


def term_for(student: Any, teacher: Any, **options: Any) -> Contrastive:
    term = Contrastive(**FEW | options)
    torch.manual_seed(3)
    term.setup(student, teacher)
    return term


@pytest.mark.parametrize("kind", STUDENTS)
def test_value_of_the_first_two_steps(kind: str) -> None:
    student, teacher, images, wanted = made(kind)
    term = term_for(student, teacher)
    queue = torch.zeros(0, 8)  # in training mode
    for _ in range(2):
        step = Step(images, wanted, teacher, teacher(images), student, student(images))
        value = term(step)["contrastive"]
        if kind == "faster_rcnn":
            (rois,) = paired_rois(step, 12)
            boxes, mine, theirs = rois.boxes, rois.student.embedding, rois.teacher.embedding
        else:
            boxes, sites = student_rois(step, 12, 0.5, 0.3)
            mine = at_sites(student.towers(step.student_prediction)[0], step.student_prediction.sizes, sites)  # type: ignore[union-attr]
            theirs = teacher.roi_head(teacher.pool(step.teacher_prediction, boxes)).embedding
        number = torch.tensor([i for i, b in enumerate(boxes) for _ in b])
        projected = term.teacher_projections[0](theirs.detach())
        expected = info_nce(term.student_projections[0](mine), projected, queue, Candidates(torch.cat(boxes), number))
        torch.testing.assert_close(value, expected.loss)
        torch.testing.assert_close(step.metrics["bound"], expected.bound)
        assert value.dtype == torch.float32
        queue = torch.cat([queue, F.normalize(projected.detach(), dim=1)])
        torch.testing.assert_close(term.queues[0].read(), queue)  # type: ignore[operator]
    assert len(queue) == 2 * len(torch.cat(boxes)) <= 60
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    for module in (student, term.student_projections, term.teacher_projections):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_sites_are_cells_of_their_level() -> None:
    maps = [
        torch.arange(2 * 3 * h * w, dtype=torch.float32).view(2, 3, h, w) + 1000 * i
        for i, (h, w) in enumerate([(2, 3), (1, 2)])
    ]
    sizes = ((2, 3, 2), (1, 2, 3))  # 12 sites, then 6
    found = at_sites(maps, sizes, [torch.tensor([0, 7, 17]), torch.tensor([14, 11])])
    assert torch.equal(found[0], maps[0][0, :, 0, 0])
    assert torch.equal(found[1], maps[0][0, :, 1, 0])  # 7 // 2 = cell 3
    assert torch.equal(found[2], maps[1][0, :, 0, 1])  # (17 - 12) // 3 = cell 1
    assert torch.equal(found[3], maps[1][1, :, 0, 0])
    assert torch.equal(found[4], maps[0][1, :, 1, 2])
    assert at_sites(maps, sizes, [torch.zeros(0, dtype=torch.int64)] * 2).shape == (0, 3)


def test_branches_of_a_dense_student() -> None:
    student, teacher, images, wanted = made("retinanet")
    values = {}
    for branch in ("cls", "box", "sum"):
        term = term_for(student, teacher, branch=branch)
        values[branch] = term(Step(images, wanted, teacher, teacher(images), student, student(images)))["contrastive"].item()
    assert len(set(values.values())) == 3


def test_the_queue_fills_in_training_alone_and_is_in_the_state_dict() -> None:
    student, teacher, images, wanted = made("faster_rcnn")
    term = term_for(student, teacher)
    step = Step(images, wanted, teacher, teacher(images), student, student(images))
    before = term.eval()(step)["contrastive"]
    assert term.queues[0].filled == 0
    torch.testing.assert_close(term.train()(step)["contrastive"], before)  # filled after the loss is taken
    assert term.queues[0].filled == 24
    again = term_for(student, teacher)
    again.load_state_dict(term.state_dict())
    full = term(step)["contrastive"]
    assert full > before  # more negatives
    torch.testing.assert_close(again(step)["contrastive"], full)
    # on held-out images the batch alone counts, so that looks compare however full the queue is
    torch.testing.assert_close(term.eval()(step)["contrastive"], before)
    assert term.queues[0].filled == 48
    assert any(name.startswith("queues.0") for name in term.state_dict())


def test_heads_and_a_shared_projection() -> None:
    student, teacher, images, wanted = made("faster_rcnn")
    with pytest.raises(
        InputError, match=r"loss.contrastive.shared: .* found 48 of the student and 32 of the teacher.*shared=false"
    ):
        term_for(student, teacher, shared=True)
    torch.manual_seed(0)
    student = FasterRCNN(**SMALL, **ROI, roi_width=32)
    for options, count in (({"shared": True}, 2), ({"head": "mlp"}, 8), ({"head": "mlp", "shared": True}, 4)):
        term = term_for(student, teacher, **options)
        assert len(list(term.parameters())) == count
        value = term(Step(images, wanted, teacher, teacher(images), student, student(images)))["contrastive"]
        value.backward()
        assert all(p.grad is not None for p in term.parameters())


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("branch", ["cls", "sum"])
def test_a_dense_teacher_gives_the_cell_of_its_tower(kind: str, branch: Any) -> None:
    student, _, images, wanted = made(kind)
    teacher = RetinaNet(**SMALL | {"classes": ("cat", "dog", "cow")}, channels=32, anchor_size=8).eval()
    term = term_for(student, teacher, branch=branch)
    for targets in (wanted, None):  # boxes of labels, and of the teacher's detections
        step = Step(images, targets, teacher, teacher(images), student, student(images))
        value = term.eval()(step)["contrastive"]
        assert step.student_prediction is not None
        assert step.teacher_prediction is not None
        boxes, sites = student_rois(step, 12, 0.5, 0.3)
        cls, box = teacher.towers(step.teacher_prediction)
        maps = cls if branch == "cls" else [c + b for c, b in zip(cls, box)]
        rows = []
        for image, of_image in enumerate(sites):
            for site in of_image.tolist():
                for level, (height, width, anchors) in enumerate(step.student_prediction.sizes):
                    if site < height * width * anchors:
                        cell = site // anchors
                        rows.append(maps[level][image, :, cell // width, cell % width])
                        break
                    site -= height * width * anchors
        mine = student.towers(step.student_prediction)
        of_student = mine[0] if branch == "cls" else [c + b for c, b in zip(*mine)]
        seen = at_sites(of_student, step.student_prediction.sizes, sites)
        number = torch.tensor([i for i, b in enumerate(boxes) for _ in b])
        projected = term.teacher_projections[0](torch.stack(rows).detach())
        none = torch.zeros(0, 8)
        expected = info_nce(term.student_projections[0](seen), projected, none, Candidates(torch.cat(boxes), number))
        torch.testing.assert_close(value, expected.loss)
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())


def test_levels_of_dense_detectors_are_paired_by_stride() -> None:
    maps = [torch.zeros(1, 3, size, size) for size in (8, 4, 2)]
    of, like = (
        Prediction({}, tuple((64 // s, 64 // s, a) for s in strides), strides, {}, (64, 64))
        for strides, a in (((8, 16, 32), 9), ((16, 32), 1))
    )
    assert [m is n for m, n in zip(at_strides(maps, of, like, "contrastive"), maps[1:])] == [True, True]
    with pytest.raises(InputError, match=r"loss 'contrastive': .* strides \[8, 16, 32\], found \[16, 32\]"):
        at_strides(maps[1:], like, of, "contrastive")
    with pytest.raises(InputError, match="on images of"):
        at_strides(maps, of, replace(like, sizes=((5, 4, 1), (2, 2, 1))), "contrastive")


@pytest.mark.parametrize("kind", STUDENTS)
def test_finite_without_labels_and_boxes_under_autocast(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, images, _ = made(kind)
    term = term_for(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = term(Step(images, None, teacher, teacher(images), student, student(images)))["contrastive"]
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert term.queues[0].rows.dtype == torch.float32
    if kind == "faster_rcnn":
        monkeypatch.setattr(teacher, "propose", lambda prediction: [torch.zeros(0, 4)] * 2)
        step = Step(images, None, teacher, teacher(images), student, student(images))
        nothing = term(step)["contrastive"]
        assert nothing.item() == step.metrics["bound"].item() == 0
        nothing.backward()


def test_the_bound_is_logged_and_adds_nothing() -> None:
    student, teacher, images, wanted = made("faster_rcnn")
    composite = Composite({"contrastive": term_for(student, teacher)}, {"contrastive": 2.0})
    total, parts = composite(Step(images, wanted, teacher, teacher(images), student, student(images)))
    assert parts.keys() == {"contrastive", "contrastive/bound"}
    torch.testing.assert_close(total, 2 * parts["contrastive"])
    assert not parts["contrastive/bound"].requires_grad


def test_setup_leaves_detectors_as_they_were() -> None:
    student, teacher, _, _ = made("faster_rcnn")
    before = {k: v.clone() for k, v in student.state_dict().items()}
    term_for(student, teacher)
    assert student.training
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_setup_and_options() -> None:
    _, teacher, _, _ = made("fcos")
    with pytest.raises(InputError, match=r"loss 'contrastive': .* found a SSD.*FasterRCNN"):
        Contrastive().setup(SSD("ssdlite320_mobilenet_v3_large", ("cat", "dog"), (96, 96)), teacher)
    with pytest.raises(InputError, match="expected a teacher with a RoI head"):
        Contrastive().setup(STUDENTS["faster_rcnn"](), STUDENTS["retinanet"]())
    with pytest.raises(InputError, match="expected a teacher with a RoI head"):
        Contrastive().setup(STUDENTS["fcos"](), SSD("ssdlite320_mobilenet_v3_large", ("cat", "dog"), (96, 96)))
    with pytest.raises(InputError, match="found no student"):
        Contrastive().setup(None, teacher)
    bad = {
        "gamma": 0.0,
        "width": 0,
        "queue": 0,
        "iou": 0.0,
        "positive_iou": 2.0,
        "head": "deep",
        "branch": "both",
        "per_image": 0,
    }
    for name, value in bad.items():
        with pytest.raises(InputError, match=rf"loss.contrastive.{name}"):
            Contrastive(**{name: value})  # type: ignore[arg-type]
