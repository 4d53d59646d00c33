"""DenseHead: the head of RetinaNet and FCOS can be read at its towers and fed with other maps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from detkd.boxes import clip_xyxy
from detkd.detectors.capabilities import detectors_with, require
from detkd.detectors.protocol import DenseHead
from detkd.detectors.torchvision import FCOS, SSD, FasterRCNN, RetinaNet
from detkd.errors import InputError

SMALL: dict[str, Any] = {"image_size": (64, 96), "backbone": "resnet18", "channels": 48, "width": 0.25}
KINDS: dict[str, Any] = {
    "retinanet": lambda **c: RetinaNet(**({"classes": ("cat", "dog")} | SMALL | c)),
    "retinanet_v2": lambda **c: RetinaNet("retinanet_resnet50_fpn_v2", **({"classes": ("cat", "dog")} | SMALL | c)),
    "fcos": lambda **c: FCOS(**({"classes": ("cat", "dog")} | SMALL | c)),
}
NAMES = ("p3", "p4", "p5", "p6", "p7")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def build(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    detector = KINDS[kind](**changes).eval()
    for conv in (detector.model.head.classification_head.conv, detector.model.head.regression_head.conv):
        for p in conv.parameters():
            p.data.normal_(0.0, 0.1)  # torchvision starts towers so small that nothing could be told apart
    return detector


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_head_on_its_own_features_is_the_forward_pass(kind: str) -> None:
    detector = build(kind)
    with torch.no_grad():
        expected = detector(images())
        again = detector.head(expected.features, expected.image_size)
    torch.testing.assert_close(again.raw, expected.raw, rtol=0, atol=0)
    assert again.features.keys() == expected.features.keys()
    assert (again.sizes, again.strides, again.image_size) == (expected.sizes, expected.strides, expected.image_size)
    torch.testing.assert_close(detector.decode(again), detector.decode(expected), rtol=0, atol=0)


def test_forward_is_torchvisions_head(kind: str) -> None:
    detector = build(kind)
    with torch.no_grad():
        prediction = detector(images())
        output = detector.model.head([prediction.features[n] for n in NAMES])
    torch.testing.assert_close(prediction.raw["cls"], output["cls_logits"], rtol=0, atol=0)
    torch.testing.assert_close(prediction.raw["box"], output["bbox_regression"], rtol=0, atol=0)
    if kind == "fcos":
        torch.testing.assert_close(prediction.raw["ctr"], output["bbox_ctrness"], rtol=0, atol=0)


@pytest.mark.parametrize("grad", [True, False])
def test_towers_are_what_the_predictions_read(kind: str, grad: bool) -> None:
    detector = build(kind)
    with torch.set_grad_enabled(grad):
        prediction = detector(images())
    assert ("towers" in prediction.state) == grad
    cls, box = detector.towers(prediction)
    shapes = [(2, 48, h, w) for h, w, _ in prediction.sizes]
    assert [tuple(m.shape) for m in cls] == [tuple(m.shape) for m in box] == shapes
    head = detector.model.head
    first = head.classification_head.cls_logits(cls[0])  # (B, A * C, H, W)
    by_site = first.unflatten(1, (-1, 2)).permute(0, 3, 4, 1, 2).reshape(2, -1, 2)
    torch.testing.assert_close(by_site, prediction.levels("cls")[0])
    last = head.regression_head.bbox_reg(box[-1]).unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(2, -1, 4)
    torch.testing.assert_close(last.relu() if kind == "fcos" else last, prediction.levels("box")[-1])


def test_towers_of_one_image(kind: str) -> None:
    detector = build(kind)
    prediction = detector(images())
    both, alone = detector.towers(prediction), detector.towers(prediction.image(1))
    for a, b in zip(both, alone):
        torch.testing.assert_close([m[1:] for m in a], b, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [1, 3, 4])
def test_the_head_can_be_left_and_entered_behind_a_layer(kind: str, layer: int) -> None:
    detector = build(kind)
    prediction = detector(images())
    assert detector.tower_layers == 4
    cls, box = detector.towers(prediction, layer)
    again = detector.head_from(cls, box, layer, prediction.image_size)
    torch.testing.assert_close(again.raw, prediction.raw, rtol=0, atol=0)
    assert (again.sizes, again.strides, again.image_size) == (prediction.sizes, prediction.strides, prediction.image_size)
    assert again.features == {}
    with torch.no_grad():  # towers that were not kept
        torch.testing.assert_close(detector.towers(detector(images()), layer), (cls, box), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(again.raw["cls"].sum(), cls[0])
    assert gradient.abs().max() > 0
    if layer == 4:
        torch.testing.assert_close(detector.towers(prediction), (cls, box), rtol=0, atol=0)


@pytest.mark.parametrize("layer", [0, 5])
def test_a_layer_that_there_is_not(kind: str, layer: int) -> None:
    detector = build(kind)
    with pytest.raises(ValueError, match=f"expected a layer of the towers from 1 to 4, got {layer}"):
        detector.towers(detector(images()), layer)


def test_differentiable_boxes_are_the_boxes_before_clipping(kind: str) -> None:
    detector = build(kind)
    prediction = detector(images())
    boxes = detector.boxes(prediction, differentiable=True)
    torch.testing.assert_close(clip_xyxy(boxes, prediction.image_size), detector.boxes(prediction))
    (gradient,) = torch.autograd.grad(boxes.sum(), prediction.features["p3"])
    assert gradient.abs().max() > 0


def test_gradient_flows_to_the_maps_given_and_to_the_pixels(kind: str) -> None:
    detector, pixels = build(kind), images(1).requires_grad_()
    prediction = detector(pixels)
    given = {name: prediction.features[name].detach().requires_grad_() for name in NAMES}
    fed = detector.head(given, prediction.image_size)
    fed.raw["cls"].square().sum().backward()
    assert all(m.grad is not None and m.grad.abs().max() > 0 for m in given.values())
    assert pixels.grad is None
    cls, box = detector.towers(prediction)
    (cls[0].sum() + box[1].sum()).backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0


def test_boxes_of_all_sites_are_those_that_decoding_chooses_from(kind: str) -> None:
    detector = build(kind)
    detector.model.score_thresh = 0.0
    with torch.no_grad():
        prediction = detector(images())
    boxes = detector.boxes(prediction)
    assert boxes.shape == (2, sum(h * w * a for h, w, a in prediction.sizes), 4)
    assert (boxes[..., 0::2] <= 96).all()
    assert (boxes[..., 1::2] <= 64).all()
    assert boxes.min() >= 0
    assert not detector.boxes(detector(images())).requires_grad
    for found, of_image in zip(detector.decode(prediction), boxes):
        assert len(found["boxes"]) > 10
        assert torch.cdist(found["boxes"], of_image, compute_mode="donot_use_mm_for_euclid_dist").amin(1).max() < 1e-2


def test_head_of_91_columns(kind: str) -> None:
    detector = build(kind, classes=None, coco91=True)
    with torch.no_grad():
        expected = detector(images(1))
        again = detector.head(expected.features, (64, 96))
    assert again.raw["cls"].shape[-1] == 80
    torch.testing.assert_close(again.raw, expected.raw, rtol=0, atol=0)
    torch.testing.assert_close(again.state["logits"], expected.state["logits"], rtol=0, atol=0)


def test_other_maps_pass_and_missing_ones_are_named(kind: str) -> None:
    detector = build(kind)
    maps = {name: torch.rand(1, 48, 4, 4) for name in NAMES}
    other = torch.rand(1, 3, 2, 2)
    assert detector.head(maps | {"mine": other}, (32, 32)).features["mine"] is other
    del maps["p5"]
    with pytest.raises(ValueError, match=r"without \['p5'\]"):
        detector.head(maps, (32, 32))


def test_nothing_is_left_behind(kind: str) -> None:
    detector = build(kind).train()
    prediction = detector(images())
    before, state = copy.deepcopy(detector.state_dict()), torch.get_rng_state()
    detector.towers(prediction)
    detector.head(prediction.features, (64, 96))
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_protocol_and_require(kind: str) -> None:
    detector = build(kind)
    assert isinstance(detector, DenseHead)
    assert require(detector, DenseHead, "crosskd") is detector
    assert detectors_with(DenseHead) == ["FCOS", "RetinaNet"]
    ssd = SSD("ssdlite320_mobilenet_v3_large", ("cat",), (96, 96))
    assert not isinstance(ssd, DenseHead)
    assert not isinstance(FasterRCNN, DenseHead)
    with pytest.raises(
        InputError, match=r"loss 'crosskd': .* found a SSD without towers, head, head_from, boxes. Detectors .*FCOS, RetinaNet"
    ):
        require(ssd, DenseHead, "crosskd")
