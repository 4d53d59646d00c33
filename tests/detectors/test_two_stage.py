"""TwoStage: propose, pool and roi_head are the parts that decode and loss are made of."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detkd.detectors.capabilities import detectors_with, require
from detkd.detectors.protocol import Detector, TwoStage
from detkd.detectors.torchvision import FCOS, FasterRCNN, RetinaNet
from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.structures import Target

QUARTER: dict[str, Any] = {"image_size": (64, 96), "backbone": "resnet18", "channels": 48, "width": 0.25, "anchor_size": 8}
SMALL_ROI: dict[str, Any] = {"roi_width": 64, "rois": 32, "train_proposals": 64, "proposals": 32, "score_threshold": 0.001}
NAMES = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2")


def build(name: str = NAMES[0], **changes: Any) -> FasterRCNN:
    torch.manual_seed(0)
    options = {"classes": ("cat", "dog", "kite")} | QUARTER | SMALL_ROI | changes
    detector = FasterRCNN(name, **options)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return detector.eval()


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def targets() -> list[Target]:
    boxes = torch.tensor([[8.0, 8.0, 60.0, 40.0], [30.0, 20.0, 90.0, 60.0]])
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return [Target(boxes=boxes, labels=torch.tensor([2, 0])), empty]


def torchvisions(detector: FasterRCNN, pixels: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Proposals, logits and deltas by torchvision's own rpn and roi_heads."""
    model = detector.model
    maps = model.backbone(detector.normalise(pixels))
    shapes = [(pixels.shape[-2], pixels.shape[-1])] * len(pixels)
    proposals, _ = model.rpn(ImageList(pixels, shapes), maps)
    pooled = model.roi_heads.box_roi_pool(maps, proposals, shapes)
    return (proposals, *model.roi_heads.box_predictor(model.roi_heads.box_head(pooled)))


@pytest.mark.parametrize("name", NAMES)
def test_parts_equal_torchvisions_own_path(name: str) -> None:
    detector = build(name)
    with torch.no_grad():
        prediction = detector(images())
        proposals = detector.propose(prediction)
        roi = detector.roi_head(detector.pool(prediction, proposals))
        expected, logits, deltas = torchvisions(detector, images())
    assert [len(p) for p in proposals] == [32, 32]
    torch.testing.assert_close(proposals, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(roi.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(roi.deltas, deltas.reshape(64, 4, 4)[:, 1:], rtol=1e-5, atol=1e-5)
    assert roi.embedding.shape == (64, 64)
    torch.testing.assert_close(detector.model.roi_heads.box_predictor.cls_score(roi.embedding), roi.logits)


def test_of_91_columns_the_80_classes_and_background() -> None:
    detector = build(classes=None, coco91=True)
    with torch.no_grad():
        prediction = detector(images())
        pooled = detector.pool(prediction, detector.propose(prediction))
        roi = detector.roi_head(pooled)
        logits, deltas = detector.model.roi_heads.box_predictor(roi.embedding)
    assert roi.logits.shape == (64, 81)
    assert roi.deltas.shape == (64, 80, 4)
    columns = list(detector.labels.columns)
    assert columns[11] == 13  # COCO has no class 12
    assert torch.equal(roi.logits, logits[:, [0, *columns]])
    assert torch.equal(roi.deltas, deltas.reshape(64, 91, 4)[:, columns])


def test_every_level_has_the_boxs_own_among_it() -> None:
    detector = build()
    boxes = [torch.tensor([[4.0, 4.0, 20.0, 20.0], [0.0, 0.0, 96.0, 64.0]]), torch.tensor([[0.0, 0.0, 330.0, 330.0]])]
    with torch.no_grad():
        prediction = detector(images())
        own, every = detector.pool(prediction, boxes), detector.pool(prediction, boxes, level="all")
    assert own.shape == (3, 48, 7, 7)
    assert every.shape == (3, 4, 48, 7, 7)
    # floor(4 + log2(side / 224)) of sides 16, 78 and 330, clamped to p2 ... p5
    torch.testing.assert_close(own, every[torch.arange(3), torch.tensor([0, 0, 2])])


def test_refined_boxes_are_those_that_decoding_finds() -> None:
    detector = build()
    with torch.no_grad():
        prediction = detector(images())
        boxes = [torch.tensor([[4.0, 6.0, 40.0, 50.0], [10.0, 2.0, 30.0, 60.0]]), torch.zeros(0, 4)]
        roi = detector.roi_head(detector.pool(prediction, boxes))
        moved = detector.refine(prediction, boxes, roi)
        coder = detector.model.roi_heads.box_coder
        by_class = coder.decode(torch.cat([torch.zeros(2, 1, 4), roi.deltas], dim=1).flatten(1), boxes[:1])  # (2, 4, 4)
    best = roi.logits[:, 1:].argmax(1)
    expected = by_class[torch.arange(2), 1 + best]
    expected[:, 0::2].clamp_(0, images().shape[-1])
    expected[:, 1::2].clamp_(0, images().shape[-2])
    torch.testing.assert_close(moved[0], expected)
    assert moved[1].shape == (0, 4)


def test_no_boxes_at_all() -> None:
    detector = build()
    with torch.no_grad():
        prediction, none = detector(images()), [torch.zeros(0, 4)] * 2
        assert detector.pool(prediction, none, level="all").shape == (0, 4, 48, 7, 7)
        roi = detector.roi_head(detector.pool(prediction, none))
    assert roi.embedding.shape == (0, 64)
    assert roi.logits.shape == (0, 4)
    assert roi.deltas.shape == (0, 3, 4)


def test_gradient_flows_to_pixels_and_heads_but_not_through_boxes() -> None:
    detector, pixels = build(), images().requires_grad_()
    prediction = detector(pixels)
    proposals = detector.propose(prediction)
    assert not any(p.requires_grad for p in proposals)
    roi = detector.roi_head(detector.pool(prediction, proposals))
    (roi.logits.square().sum() + roi.deltas.square().sum()).backward()
    assert pixels.grad is not None
    assert (pixels.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    touched = {n.split(".")[1] for n, p in detector.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched == {"backbone", "roi_heads"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_norms_modes_and_random_state_stay(name: str, training: bool) -> None:
    detector = build(name)
    prediction = detector(images())
    detector.train(training)
    before, modes = copy.deepcopy(detector.state_dict()), [m.training for m in detector.modules()]
    state, own = torch.get_rng_state(), detector.generator.get_state()
    proposals = detector.propose(prediction)
    detector.roi_head(detector.pool(prediction, proposals))
    detector.pool(prediction, proposals, level="all")
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert modes == [m.training for m in detector.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(own, detector.generator.get_state())
    assert all(m.track_running_stats for m in detector.modules() if isinstance(m, nn.BatchNorm2d))


def test_proposals_are_those_of_decoding_in_either_mode() -> None:
    detector = build(train_proposals=16)
    prediction = detector(images())
    expected = detector.propose(prediction)
    assert [len(p) for p in expected] == [32, 32]
    torch.testing.assert_close(detector.train().propose(prediction), expected, rtol=0, atol=0)


def test_loss_takes_proposals_of_another() -> None:
    detector, wanted = build(), targets()
    prediction = detector(images())
    with torch.no_grad():
        own = detector.propose(prediction)  # 32, where the loss would take 64
    detector.reseed(0)
    expected = detector.loss(prediction, wanted)
    detector.reseed(0)
    given = detector.loss(prediction, wanted, [p[:4] for p in own])
    assert given["rpn_obj"] == expected["rpn_obj"]
    assert given["rpn_box"] == expected["rpn_box"]
    assert given["roi_cls"] != expected["roi_cls"]
    detector.reseed(0)
    none = detector.loss(prediction, wanted, [torch.zeros(0, 4)] * 2)
    assert all(torch.isfinite(v) for v in none.values())
    same = build(train_proposals=32)
    same.reseed(0)
    usual = same.loss(prediction, wanted)
    same.reseed(0)
    torch.testing.assert_close(same.loss(prediction, wanted, same.propose(prediction)), usual, rtol=0, atol=0)


def test_step_makes_proposals_once_and_of_the_teacher_first() -> None:
    class Counting(FasterRCNN):
        calls = 0

        def propose(self, prediction: Any) -> list[Tensor]:
            self.calls += 1
            return super().propose(prediction)

    torch.manual_seed(0)
    teacher = Counting(classes=("cat",), **QUARTER, **SMALL_ROI).eval()
    dense = RetinaNet(classes=("cat",), **QUARTER).eval()
    student = build()
    pixels = images()
    step = Step(pixels, None, teacher, teacher(pixels), student, student(pixels))
    assert step.proposals is step.proposals
    assert teacher.calls == 1
    torch.testing.assert_close(step.image(1).proposals, step.proposals[1:], rtol=1e-4, atol=1e-3)
    alone = Step(pixels, None, dense, dense(pixels), student, student(pixels))
    torch.testing.assert_close(alone.proposals, student.propose(student(pixels)))
    with pytest.raises(InputError, match="two-stage teacher or student"):
        _ = Step(pixels, None, dense, dense(pixels)).proposals


def test_protocol_and_require() -> None:
    two, dense = build(), FCOS(classes=("cat",), image_size=(64, 64), backbone="resnet18", channels=16, width=0.25)
    assert isinstance(two, TwoStage)
    assert isinstance(dense, Detector)
    assert not isinstance(dense, TwoStage)
    assert require(two, TwoStage, "sgfi") is two
    assert detectors_with(TwoStage) == ["FasterRCNN"]
    with pytest.raises(
        InputError, match=r"loss 'sgfi': expected a student with a RoI head .* a FCOS without propose.*FasterRCNN"
    ):
        require(dense, TwoStage, "sgfi", "student")
    with pytest.raises(InputError, match="found no teacher"):
        require(None, TwoStage, "sgfi")
