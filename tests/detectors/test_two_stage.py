"""TwoStage: propose, pool and roi_head are the parts that decode and loss are made of."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detkd.detectors.capabilities import detectors_with, require
from detkd.detectors.checkpoint import load_checkpoint, save_checkpoint
from detkd.detectors.protocol import Detector, TwoStage
from detkd.detectors.torchvision import FCOS, CascadeRCNN, FasterRCNN, FasterRCNNC4, RetinaNet
from detkd.detectors.torchvision.two_stage import TwoStageRCNN
from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.structures import Target

QUARTER: dict[str, Any] = {"image_size": (64, 96), "backbone": "resnet18", "channels": 48, "width": 0.25, "anchor_size": 8}
SMALL_ROI: dict[str, Any] = {"roi_width": 64, "rois": 32, "train_proposals": 64, "proposals": 32, "score_threshold": 0.001}
NAMES = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2")
FAMILIES = ("faster_rcnn", "faster_rcnn_c4", "cascade_rcnn")
ALL = (*NAMES, "faster_rcnn_c4", "cascade_rcnn")
# of pooled features and embedding
SHAPES = {"faster_rcnn": ((48, 7, 7), 64, 4), "faster_rcnn_c4": ((64, 14, 14), 128, 1), "cascade_rcnn": ((48, 7, 7), 64, 4)}


def build(name: str = NAMES[0], **changes: Any) -> Any:
    torch.manual_seed(0)
    options = {"classes": ("cat", "dog", "kite")} | QUARTER | SMALL_ROI | changes
    if name == "faster_rcnn_c4":
        made: TwoStageRCNN = FasterRCNNC4(**{k: v for k, v in options.items() if k not in ("channels", "roi_width")})
    elif name == "cascade_rcnn":
        made = CascadeRCNN(**options)
    else:
        made = FasterRCNN(NAMES[0] if name == "faster_rcnn" else name, **options)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    for module_name, module in made.named_modules():
        if isinstance(module, nn.Linear) and module_name.endswith("bbox_pred"):
            nn.init.normal_(module.weight, std=0.1)  # so that boxes move
    return made.eval()


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [0, 3])
def test_shapes_also_of_no_boxes_at_all(family: str, count: int) -> None:
    detector, (pooled_shape, width, levels) = build(family), SHAPES[family]
    assert detector.stages == (3 if family == "cascade_rcnn" else 1)
    with torch.no_grad():
        prediction, boxes = detector(images()), [torch.tensor([[4.0, 6.0, 40.0, 50.0]]).repeat(count, 1), torch.zeros(0, 4)]
        assert detector.pool(prediction, boxes, level="all").shape == (count, levels, *pooled_shape)
        for stage in range(detector.stages):
            pooled = detector.pool(prediction, boxes)
            assert pooled.shape == (count, *pooled_shape)
            roi = detector.roi_head(pooled, stage)
            assert roi.embedding.shape == (count, width)
            assert roi.logits.shape == (count, 4)
            assert roi.deltas.shape == (count, 3, 4)
            assert [len(b) for b in detector.refine(prediction, boxes, roi, stage)] == [count, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_flows_to_pixels_and_heads_but_not_through_boxes(family: str) -> None:
    detector, pixels = build(family), images().requires_grad_()
    prediction = detector(pixels)
    proposals = detector.propose(prediction)
    assert not any(p.requires_grad for p in proposals)
    roi = detector.roi_head(detector.pool(prediction, proposals))
    (roi.logits.square().sum() + roi.deltas.square().sum()).backward()
    assert pixels.grad is not None
    assert (pixels.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    touched = {n.split(".")[1] for n, p in detector.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched == {"backbone", "roi_heads"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_norms_modes_and_random_state_stay(name: str, training: bool) -> None:
    detector = build(name)
    prediction = detector(images())
    detector.train(training)
    before, modes = copy.deepcopy(detector.state_dict()), [m.training for m in detector.modules()]
    state, own = torch.get_rng_state(), detector.generator.get_state()
    proposals = detector.propose(prediction)
    for stage in range(detector.stages):
        roi = detector.roi_head(detector.pool(prediction, proposals), stage)
        detector.refine(prediction, proposals, roi, stage)
    detector.pool(prediction, proposals, level="all")
    detector.decode(prediction)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert modes == [m.training for m in detector.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(own, detector.generator.get_state())
    assert all(m.track_running_stats for m in detector.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("family", FAMILIES)
def test_proposals_are_those_of_decoding_in_either_mode(family: str) -> None:
    detector = build(family, train_proposals=16)
    prediction = detector(images())
    expected = detector.propose(prediction)
    assert [len(p) for p in expected] == [32, 32]
    torch.testing.assert_close(detector.train().propose(prediction), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_takes_proposals_of_another(family: str) -> None:
    detector, wanted, first = build(family), targets(), "roi_cls_1" if family == "cascade_rcnn" else "roi_cls"
    prediction = detector(images())
    with torch.no_grad():
        own = detector.propose(prediction)  # 32, where the loss would take 64
    detector.reseed(0)
    expected = detector.loss(prediction, wanted)
    detector.reseed(0)
    given = detector.loss(prediction, wanted, [p[:4] for p in own])
    assert given["rpn_obj"] == expected["rpn_obj"]
    assert given["rpn_box"] == expected["rpn_box"]
    assert given[first] != expected[first]
    detector.reseed(0)
    none = detector.loss(prediction, wanted, [torch.zeros(0, 4)] * 2)
    assert all(torch.isfinite(v) for v in none.values())
    same = build(family, train_proposals=32)
    same.reseed(0)
    usual = same.loss(prediction, wanted)
    same.reseed(0)
    torch.testing.assert_close(same.loss(prediction, wanted, same.propose(prediction)), usual, rtol=0, atol=0)


def no_targets() -> list[Target]:
    return [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_finite_without_boxes_reaches_the_pixels_and_repeats(family: str) -> None:
    detector, state = build(family), torch.get_rng_state()
    before = copy.deepcopy(detector.state_dict())
    for wanted in (targets(), no_targets()):
        pixels = images().requires_grad_()
        prediction = detector(pixels)
        detector.reseed(0)
        parts = detector.loss(prediction, wanted)
        assert all(v.ndim == 0 and v.dtype == torch.float32 and torch.isfinite(v) for v in parts.values()), parts
        detector.reseed(0)
        again = detector.loss(prediction, wanted)
        assert all(torch.equal(value, again[name]) for name, value in parts.items())
        torch.stack(list(parts.values())).sum().backward()
        assert pixels.grad is not None
        assert torch.isfinite(pixels.grad).all()
        assert (pixels.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("family", FAMILIES)
def test_image_of_a_prediction_decodes_as_in_the_batch(family: str) -> None:
    detector = build(family)
    with torch.no_grad():
        prediction = detector(images())
    both = detector.decode(prediction)
    for index, found in enumerate(both):
        assert len(found["boxes"]) > 3
        assert (found["scores"].diff() <= 0).all()
        (alone,) = detector.decode(prediction.image(index))
        torch.testing.assert_close(dict(alone), dict(found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_builds_it_again(family: str, tmp_path: Path) -> None:
    detector = build(family, nms_iou=0.4, max_detections=7, roi_box_gain=2.0, sampling_seed=3)
    save_checkpoint(detector, tmp_path / "detector.safetensors")
    again: Any = load_checkpoint(tmp_path / "detector.safetensors")
    assert type(again) is type(detector)
    assert again.arguments() == detector.arguments()
    again.eval()
    with torch.no_grad():
        expected, found = detector.decode(detector(images())), again.decode(again(images()))
    assert len(found[0]["boxes"]) == 7
    torch.testing.assert_close([dict(d) for d in found], [dict(d) for d in expected], rtol=0, atol=0)
    wanted = targets()
    detector.reseed(3)
    assert again.loss(again(images()), wanted) == detector.loss(detector(images()), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_on_one_image_lower_the_loss(family: str) -> None:
    detector = build(family).train()
    statistics = {n: v.clone() for n, v in detector.state_dict().items() if n.endswith("running_mean")}
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    totals = []
    for _ in range(8):
        detector.reseed(0)
        total = torch.stack(list(detector.loss(detector(images(1)), targets()[:1]).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0], totals
    assert all(p.grad is not None for p in detector.parameters())
    assert not any(torch.equal(value, detector.state_dict()[name]) for name, value in statistics.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_leave_the_roi_head_out_and_can_be_frozen(family: str) -> None:
    detector = build(family)
    assert [n.name for n in detector.norms()]
    assert not any("roi_heads" in n.name for n in detector.norms())
    frozen = build(family, frozen_norms=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert len(frozen.norms()) == len(detector.norms())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "words"),
    [({"backbone": "vgg16"}, "backbone: expected one of"), ({"width": 0.0}, "width"), ({"classes": None}, "classes")],
)
def test_bad_arguments_are_named(family: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(family, **changes)


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
    assert detectors_with(TwoStage) == ["CascadeRCNN", "FasterRCNN", "FasterRCNNC4"]
    assert all(isinstance(build(family), TwoStage) for family in FAMILIES)
    with pytest.raises(
        InputError, match=r"loss 'sgfi': expected a student with a RoI head .* a FCOS without propose.*FasterRCNN"
    ):
        require(dense, TwoStage, "sgfi", "student")
    with pytest.raises(InputError, match="found no teacher"):
        require(None, TwoStage, "sgfi")
