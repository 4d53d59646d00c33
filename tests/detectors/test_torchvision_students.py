"""torchvision students: narrow ResNets with a pyramid, trained from scratch, small enough for a CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.ops.misc import FrozenBatchNorm2d

from detkd.detectors.torchvision import FCOS, SSD, FasterRCNN, RetinaNet
from detkd.detectors.torchvision.backbones import RESNETS, resnet_body, stage_channels
from detkd.errors import InputError
from detkd.structures import Target

CLASSES = ("cat", "dog", "kite")
QUARTER: dict[str, Any] = {"classes": CLASSES, "image_size": (64, 96), "backbone": "resnet18", "channels": 48, "width": 0.25}
SMALL_ROI: dict[str, Any] = {"roi_width": 64, "rois": 32, "train_proposals": 64, "proposals": 32, "anchor_size": 8}
STUDENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "retinanet_resnet50_fpn": (RetinaNet, {"anchor_size": 8}),
    "retinanet_resnet50_fpn_v2": (RetinaNet, {"anchor_size": 8}),
    "fcos_resnet50_fpn": (FCOS, {}),
    "fasterrcnn_resnet50_fpn": (FasterRCNN, SMALL_ROI),
    "fasterrcnn_resnet50_fpn_v2": (FasterRCNN, SMALL_ROI),
}


def student(name: str, **changes: Any) -> Any:
    family, options = STUDENTS[name]
    torch.manual_seed(0)
    return family(name, **(QUARTER | options | changes))


def batch() -> tuple[Tensor, list[Target]]:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[8.0, 8.0, 60.0, 40.0], [30.0, 20.0, 90.0, 60.0]])
    return images, [
        Target(boxes=boxes, labels=torch.tensor([2, 0])),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]


@pytest.mark.parametrize("name", STUDENTS)
def test_quarter_width_student_trains(name: str) -> None:
    detector = student(name).train()
    assert all(p.requires_grad for p in detector.parameters())
    assert sum(p.numel() for p in detector.parameters()) < 2_000_000
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01, momentum=0.9)
    images, targets = batch()
    statistics = detector.norms()[0].mean.clone()
    totals = []
    for _ in range(6):
        if isinstance(detector, FasterRCNN):
            detector.reseed(0)
        losses = detector.loss(detector(images), targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    # The pooled coarse levels of the pyramid feed the RPN alone; every weight has a path to the loss.
    assert all(p.grad is not None for p in detector.parameters())
    assert totals[-1] < totals[0]
    assert not torch.equal(statistics, detector.norms()[0].mean)


@pytest.mark.parametrize("name", STUDENTS)
def test_size_of_maps_and_roi_head(name: str) -> None:
    detector = student(name).eval()
    with torch.no_grad():
        prediction = detector(batch()[0])
    assert {v.shape[1] for k, v in prediction.features.items() if k.startswith("p")} == {48}
    first = 3 if len(prediction.features) == 8 else 2
    stages = stage_channels("resnet18", 0.25)
    for i in range(first, 6):
        assert prediction.features[f"c{i}"].shape[1] == stages[i - 2]
        assert prediction.features[f"c{i}"].shape[-2:] == (-(-64 // 2**i), -(-96 // 2**i))
    assert list(prediction.strides) == [2 ** (first + i) for i in range(5)]
    if isinstance(detector, FasterRCNN):
        assert detector.model.roi_heads.box_predictor.cls_score.in_features == 64
        assert all(len(d["boxes"]) <= 100 for d in detector.decode(prediction))


def test_every_norm_of_a_student_is_trainable() -> None:
    detector = student("retinanet_resnet50_fpn")
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in detector.modules())
    assert len(detector.norms()) == 20
    assert all(isinstance(n.module, nn.BatchNorm2d) and n.module.weight.requires_grad for n in detector.norms())


def test_frozen_norms_keep_statistics_in_train_mode() -> None:
    detector = student("fcos_resnet50_fpn", frozen_norms=True, frozen_eps=0.0).train()
    assert all(isinstance(n.module, FrozenBatchNorm2d) and n.eps == 0.0 for n in detector.norms())
    assert len(detector.norms()) == 20
    before = copy.deepcopy(detector.state_dict())
    detector(batch()[0])
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    assert type(detector)(**detector.arguments()).load_state_dict(detector.state_dict())


@pytest.mark.parametrize("name", RESNETS[:3])
def test_full_width_resnet_is_torchvisions(name: str) -> None:
    theirs = get_model(name, weights=None).eval()
    body = resnet_body(name).eval()
    body.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(body(image), expected)


@pytest.mark.parametrize("name", RESNETS)
def test_stages_have_the_channels_said(name: str) -> None:
    with torch.no_grad():
        out = resnet_body(name, 0.125).eval()(torch.rand(1, 3, 32, 32))
    assert out.shape == (1, stage_channels(name, 0.125)[3], 1, 1)


def test_odd_image_sizes() -> None:
    for name in STUDENTS:
        detector = student(name).eval()
        with torch.no_grad():
            prediction = detector(torch.rand(1, 3, 75, 101))
        assert prediction.image_size == (75, 101)
        assert all(torch.isfinite(v) for v in detector.loss(prediction, batch()[1][:1]).values())
        (found,) = detector.decode(prediction)
        if len(found["boxes"]):
            assert found["boxes"][:, 2].max() <= 101
            assert found["boxes"][:, 3].max() <= 75


def test_gains_scale_the_parts() -> None:
    images, targets = batch()
    for name, changes in (
        ("retinanet_resnet50_fpn", {"box_gain": 2.0, "cls_gain": 0.5}),
        ("fcos_resnet50_fpn", {"box_gain": 2.0, "cls_gain": 0.5, "ctr_gain": 3.0}),
        ("fasterrcnn_resnet50_fpn", {"rpn_obj_gain": 2.0, "rpn_box_gain": 3.0, "roi_cls_gain": 0.5, "roi_box_gain": 4.0}),
    ):
        plain, scaled = student(name).eval(), student(name, **changes).eval()
        a, b = plain.loss(plain(images), targets), scaled.loss(scaled(images), targets)
        for part, value in a.items():
            assert b[part].item() == pytest.approx(value.item() * changes[f"{part}_gain"], rel=1e-5)


def test_half_precision_has_float_losses_and_boxes() -> None:
    images, targets = batch()
    for name in STUDENTS:
        detector = student(name, score_threshold=0.001).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = detector(images)
            losses = detector.loss(prediction, targets)
            found = detector.decode(prediction)
        assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in losses.values()), (name, losses)
        assert all(d["boxes"].dtype == torch.float32 for d in found)


def test_roi_sampling_has_a_random_state_of_its_own() -> None:
    images, targets = batch()
    detector = student("fasterrcnn_resnet50_fpn", rois=4).eval()
    with torch.no_grad():
        prediction = detector(images)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        first = detector.loss(prediction, targets)
        assert torch.equal(before, torch.get_rng_state())
        second = detector.loss(prediction, targets)
        detector.reseed(0)
        torch.manual_seed(8)
        third = detector.loss(prediction, targets)
        twin = copy.deepcopy(detector)
        fourth, fifth = detector.loss(prediction, targets), twin.loss(prediction, targets)
    assert all(torch.equal(first[k], third[k]) for k in first)
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(fourth[k], fifth[k]) for k in first), "a copy carries the random state on"
    assert twin.generator is not detector.generator
    assert twin.model.rpn.fg_bg_sampler.generator is twin.generator


def test_loss_without_any_proposal_is_finite() -> None:
    images, targets = batch()
    detector = student("fasterrcnn_resnet50_fpn").eval()
    detector.model.rpn.score_thresh = 1.1
    prediction = detector(images)
    assert all(torch.isfinite(v) for v in detector.loss(prediction, [targets[1], targets[1]]).values())
    assert all(torch.isfinite(v) for v in detector.loss(prediction, targets).values())
    assert [len(d["boxes"]) for d in detector.decode(prediction)] == [0, 0]


def test_an_error_leaves_the_modes_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = student("fasterrcnn_resnet50_fpn_v2").eval()
    images, targets = batch()
    prediction = detector(images)
    seen = []

    def fail(*_: Any) -> None:
        seen.append((detector.model.rpn.training, detector.model.rpn.head.training))
        raise RuntimeError("on purpose")

    monkeypatch.setattr(detector.model.rpn, "filter_proposals", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        detector.loss(prediction, targets)
    assert not any(m.training for m in detector.modules())
    detector.train()
    with pytest.raises(RuntimeError, match="on purpose"):
        detector.decode(prediction)
    assert all(m.training for m in detector.modules())
    assert seen == [(True, False), (False, False)]


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (RetinaNet, {"architecture": "retinanet"}, "architecture: expected one of .*'retinanet'"),
        (RetinaNet, {"classes": None}, "classes: expected class names"),
        (RetinaNet, {"backbone": "resnet19"}, "backbone: expected one of .*'resnet19'"),
        (FCOS, {"width": 0.0}, "width: expected a positive factor"),
        (FCOS, {"channels": 0}, "channels: expected a positive number"),
        (FCOS, {"image_size": (64,)}, "image_size: expected"),
        (FCOS, {"std": (1.0, 0.0, 1.0)}, "std: expected three positive numbers"),
        (FCOS, {"mean": (1.0, 0.0)}, "mean: expected three numbers"),
        (FasterRCNN, {"architecture": "fasterrcnn_mobilenet_v3_large_fpn", "width": 0.5}, "mobilenet_v3_large comes with"),
    ],
)
def test_bad_arguments_are_named(family: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        family(**({"classes": CLASSES} | options))


def test_ssd300_names_its_smallest_image() -> None:
    detector = SSD("ssd300_vgg16", classes=CLASSES).eval()
    with pytest.raises(ValueError, match="at least 268 px"):
        detector(torch.zeros(1, 3, 267, 300))
    prediction = detector(torch.rand(1, 3, 268, 300))
    assert [h for h, _, _ in prediction.sizes] == [34, 17, 9, 5, 3, 1]
    assert all(torch.isfinite(v) for v in detector.loss(prediction, batch()[1][:1]).values())
    assert detector.norms() == []
