"""What every torchvision adapter must hold, on all nine architectures with random weights."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detkd.detectors.protocol import Detector
from detkd.detectors.torchvision import FCOS, SSD, FasterRCNN, RetinaNet
from detkd.structures import Target

CLASSES = ["cat", "dog", "kite"]
PX = 96
FAMILY: dict[str, tuple[Any, int]] = {
    "ssd300_vgg16": (SSD, 300),
    "ssdlite320_mobilenet_v3_large": (SSD, 320),
    "retinanet_resnet50_fpn": (RetinaNet, PX),
    "retinanet_resnet50_fpn_v2": (RetinaNet, PX),
    "fcos_resnet50_fpn": (FCOS, PX),
    "fasterrcnn_resnet50_fpn": (FasterRCNN, PX),
    "fasterrcnn_resnet50_fpn_v2": (FasterRCNN, PX),
    "fasterrcnn_mobilenet_v3_large_fpn": (FasterRCNN, PX),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (FasterRCNN, PX),
}
HEAVY = ("ssd300_vgg16", "fasterrcnn_resnet50_fpn_v2")


def build(name: str, **changes: Any) -> Any:
    """The detector with random weights and statistics, in eval mode, with a threshold that random weights pass."""
    family, size = FAMILY[name]
    options: dict[str, Any] = {"classes": CLASSES, "image_size": (size, size), "score_threshold": 0.001}
    if family is FasterRCNN:
        options |= {"proposals": 64, "train_proposals": 64}
    torch.manual_seed(0)
    detector = family(name, **(options | changes)).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    spread_heads(detector)
    return detector.requires_grad_(False)


def spread_heads(detector: Any) -> None:
    """Give the last layers larger weights, so that random scores differ and NMS has something to choose from."""
    for module_name, module in detector.named_modules():
        if any(part in module_name for part in ("cls_logits", "cls_score", "ctrness")) and isinstance(
            module, nn.Conv2d | nn.Linear
        ):
            nn.init.normal_(module.weight, 0, 0.05)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.5)


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in FAMILY])
def detector(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def images_for(detector: Any, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *detector.spec.image_size, generator=torch.Generator().manual_seed(1))


def some_targets(detector: Any) -> list[Target]:
    height, width = detector.spec.image_size
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.5], [0.4, 0.3, 0.9, 0.95]]) * torch.tensor([width, height, width, height])
    return [Target(boxes=boxes, labels=torch.tensor([2, 0])), no_boxes()]


def no_boxes() -> Target:
    return Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


def native(detector: Any, images: Tensor) -> list[dict[str, Tensor]]:
    """torchvision's own answer, its resize set to the size the images have."""
    height, width = images.shape[-2:]
    model = copy.deepcopy(detector.model)
    model.transform = GeneralizedRCNNTransform(
        height, width, list(detector.spec.mean), list(detector.spec.std), size_divisible=1, fixed_size=(width, height)
    )
    with torch.no_grad():
        return model(list(images))


def test_is_a_detector(detector: Any) -> None:
    assert isinstance(detector, Detector)
    assert detector.spec.classes == tuple(CLASSES)


def test_loss_is_finite_in_eval_mode_and_reaches_the_pixels(detector: Any) -> None:
    images = images_for(detector).requires_grad_()
    losses = detector.loss(detector(images), some_targets(detector))
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in losses.values())
    assert all(torch.isfinite(value) and value > 0 for value in losses.values()), losses
    (gradient,) = torch.autograd.grad(sum(losses.values()), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().amax(dim=(1, 2, 3))[0] > 0


def test_loss_without_any_box_is_finite(detector: Any) -> None:
    images = images_for(detector).requires_grad_()
    losses = detector.loss(detector(images), [no_boxes(), no_boxes()])
    assert all(torch.isfinite(value) for value in losses.values()), losses
    (gradient,) = torch.autograd.grad(sum(losses.values()), images)
    assert torch.isfinite(gradient).all()


def test_eval_mode_changes_nothing(detector: Any) -> None:
    before = copy.deepcopy(detector.state_dict())
    modes = [m.training for m in detector.modules()]
    random_state = torch.get_rng_state()
    prediction = detector(images_for(detector))
    detector.loss(prediction, some_targets(detector))
    detector.decode(prediction)
    after = detector.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [m.training for m in detector.modules()]
    assert torch.equal(random_state, torch.get_rng_state())
    assert not any(m._forward_hooks for m in detector.modules())


def test_decode_equals_torchvision(detector: Any) -> None:
    images = images_for(detector)
    ours, theirs = detector.decode(detector(images)), native(detector, images)
    offset = 1 if detector.labels.background else 0
    for a, b in zip(ours, theirs, strict=True):
        assert len(b["boxes"]) > 3
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=1e-6)
        assert torch.equal(a["labels"] + offset, b["labels"])
        assert (a["scores"].diff() <= 0).all()
        assert 0 <= int(a["labels"].min()) <= int(a["labels"].max()) < len(CLASSES)


def test_loss_equals_torchvision(detector: Any) -> None:
    if isinstance(detector, FasterRCNN):
        detector.reseed(3)
    images, targets = images_for(detector), some_targets(detector)
    ours = detector.loss(detector(images), targets)
    offset = 1 if detector.labels.background else 0
    model = copy.deepcopy(detector.model)
    if isinstance(detector, FasterRCNN):
        model.rpn.fg_bg_sampler.generator.manual_seed(3)
        assert model.rpn.fg_bg_sampler.generator is model.roi_heads.fg_bg_sampler.generator
    height, width = images.shape[-2:]
    model.transform = GeneralizedRCNNTransform(
        height, width, list(detector.spec.mean), list(detector.spec.std), size_divisible=1, fixed_size=(width, height)
    )
    model.training = True  # of this module alone: the norms stay in eval mode
    if isinstance(detector, FasterRCNN):
        model.rpn.training = model.roi_heads.training = True
    theirs = model(list(images), [{"boxes": t["boxes"], "labels": t["labels"] + offset} for t in targets])
    assert sorted(v.item() for v in ours.values()) == pytest.approx(sorted(v.item() for v in theirs.values()), rel=1e-4)


def test_batch_of_two_is_two_batches_of_one(detector: Any) -> None:
    images = images_for(detector)
    both = detector(images)
    for i in range(2):
        alone = detector(images[i : i + 1])
        for name, value in alone.raw.items():
            torch.testing.assert_close(both.raw[name][i : i + 1], value, rtol=1e-3, atol=1e-4)
        for name, value in alone.features.items():
            torch.testing.assert_close(both.features[name][i : i + 1], value, rtol=1e-3, atol=1e-3)


def test_image_of_a_prediction_can_be_read_alone(detector: Any) -> None:
    images, targets = images_for(detector), some_targets(detector)
    single, alone = detector(images).image(0), detector(images[:1])
    assert len(single) == 1
    losses = []
    for prediction in (single, alone):
        if isinstance(detector, FasterRCNN):
            detector.reseed(5)
        losses.append([v.item() for v in detector.loss(prediction, targets[:1]).values()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    (ours,), (theirs,) = detector.decode(single), detector.decode(alone)
    assert abs(len(ours["boxes"]) - len(theirs["boxes"])) <= 1
    torch.testing.assert_close(ours["scores"][:3], theirs["scores"][:3], rtol=1e-3, atol=1e-5)


def test_levels_and_features_fit(detector: Any) -> None:
    prediction = detector(images_for(detector, 1))
    count = sum(h * w * a for h, w, a in prediction.sizes)
    assert len(prediction.strides) == len(prediction.sizes)
    assert list(prediction.strides) == sorted(prediction.strides)
    for name, value in prediction.raw.items():
        assert value.shape[:2] == (1, count)
        assert torch.equal(torch.cat(prediction.levels(name), dim=1), value)
    maps = [v for k, v in prediction.features.items() if k.startswith("p")]
    assert [tuple(m.shape[-2:]) for m in maps] == [(h, w) for h, w, _ in prediction.sizes]
    assert prediction.raw["box"].shape[-1] == 4
    if "cls" in prediction.raw:
        assert prediction.raw["cls"].shape[-1] == len(CLASSES) + int(detector.labels.background)


def test_norms(detector: Any) -> None:
    names = [norm.name for norm in detector.norms()]
    assert not any("roi_heads" in name for name in names)
    expected = {"ssd300_vgg16": 0, "ssdlite320_mobilenet_v3_large": 46 + 12 + 12}
    resnet50 = 53 + (8 if detector.architecture.name == "fasterrcnn_resnet50_fpn_v2" else 0)
    if "resnet50" in detector.architecture.name:
        assert len(names) == resnet50
    elif detector.architecture.name in expected:
        assert len(names) == expected[detector.architecture.name]
    else:
        assert len(names) == 46


def test_state_fits_torchvisions_builder(detector: Any) -> None:
    theirs = torchvision.models.get_model(
        detector.architecture.name, weights=None, weights_backbone=None, num_classes=detector.labels.width
    ).state_dict()
    ours = detector.model.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_arguments_build_it_again(detector: Any) -> None:
    arguments = json.loads(json.dumps(detector.arguments()))
    assert arguments["weights"] is None
    again = type(detector)(**arguments).eval()
    again.load_state_dict(detector.state_dict())
    assert again.arguments() == arguments
    assert again.spec == detector.spec
    images = images_for(detector, 1)
    with torch.no_grad():
        torch.testing.assert_close(again(images).raw, detector(images).raw, rtol=0, atol=0)


def test_decode_takes_train_mode_without_learning(detector: Any) -> None:
    prediction = detector(images_for(detector))
    expected = detector.decode(prediction)
    before = copy.deepcopy(detector.state_dict())
    try:
        found = detector.train().decode(prediction)
        assert detector.training
    finally:
        detector.eval()
    torch.testing.assert_close([dict(d) for d in found], [dict(d) for d in expected], rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


def test_bad_targets_are_named(detector: Any) -> None:
    prediction = detector(images_for(detector, 1))
    beyond = Target(boxes=torch.tensor([[5.0, 5.0, 8.0, 9.0]]), labels=torch.tensor([len(CLASSES)]))
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        detector.loss(prediction, [beyond])
    with pytest.raises(ValueError, match="int64 labels"):
        detector.loss(prediction, [Target(boxes=beyond["boxes"], labels=torch.tensor([0.0]))])
    with pytest.raises(ValueError, match="one target an image"):
        detector.loss(prediction, [])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        detector(torch.zeros(1, 1, 320, 320))
