"""Faster R-CNN C4: which part of the ResNet sees the image and which sees RoIs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from detkd.detectors.torchvision import FasterRCNNC4
from detkd.detectors.torchvision.backbones import RESNETS, stage_channels
from detkd.losses.connectors import neck_strides

SMALL: dict[str, Any] = {"classes": ("cat", "dog"), "image_size": (64, 96), "width": 0.125, "anchor_size": 8, "proposals": 20}


def build(**changes: Any) -> FasterRCNNC4:
    torch.manual_seed(0)
    return FasterRCNNC4(**(SMALL | {"backbone": "resnet18", "score_threshold": 0.001} | changes)).eval()


def image() -> Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backbone", RESNETS)
def test_maps_anchors_and_roi_features(backbone: str) -> None:
    detector = build(backbone=backbone)
    c2, c3, c4, c5 = stage_channels(backbone, 0.125)
    with torch.no_grad():
        prediction = detector(image())
        shapes = {name: tuple(m.shape[1:]) for name, m in prediction.features.items()}
        assert shapes == {"c2": (c2, 16, 24), "c3": (c3, 8, 12), "c4": (c4, 4, 6)}
        assert prediction.sizes == ((4, 6, 15),)
        assert prediction.strides == (16,)
        assert neck_strides(prediction) == {"c4": 16}  # what terms on neck maps compare
        pooled = detector.pool(prediction, [torch.tensor([[3.0, 5.0, 60.0, 44.0]])])
        torch.testing.assert_close(
            pooled, roi_align(prediction.features["c4"], [torch.tensor([[3.0, 5.0, 60.0, 44.0]])], 14, 1 / 16, 2)
        )
        roi = detector.roi_head(pooled)
    assert pooled.shape == (1, c4, 14, 14)
    assert roi.embedding.shape == (1, c5)
    anchors = detector.model.rpn.anchor_generator(ImageList(image(), [(64, 96)]), [prediction.features["c4"]])[0]
    sides = ((anchors[:15, 2] - anchors[:15, 0]) * (anchors[:15, 3] - anchors[:15, 1])).sqrt()
    torch.testing.assert_close(
        sides, torch.tensor([8.0, 16, 32, 64, 128]).repeat(3), rtol=0.08, atol=0
    )  # rounded to whole pixels


def test_full_width_trunk_and_head_are_torchvisions_resnet() -> None:
    theirs = get_model("resnet18", weights=None).eval()
    detector = build(width=1.0)
    state = theirs.state_dict()
    trunk, head = detector.model.backbone.body, detector.model.roi_heads.box_head.layer4
    trunk.load_state_dict({k: v for k, v in state.items() if not k.startswith(("layer4.", "fc."))})
    head.load_state_dict({k.removeprefix("layer4."): v for k, v in state.items() if k.startswith("layer4.")})
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image()))))
        c4 = theirs.layer3(theirs.layer2(theirs.layer1(x)))
        stages = trunk(image())
        torch.testing.assert_close(list(stages.values())[-1], c4)
        pooled = torch.rand(2, 256, 14, 14)
        torch.testing.assert_close(detector.roi_head(pooled).embedding, theirs.layer4(pooled).mean((2, 3)))


def test_decode_equals_torchvisions_own_path() -> None:
    detector = build()
    with torch.no_grad():
        pixels = detector.normalise(image())
        maps = detector.model.backbone.fpn(detector.model.backbone.body(pixels))
        proposals, _ = detector.model.rpn(ImageList(pixels, [(64, 96)]), maps)
        expected, _ = detector.model.roi_heads(maps, proposals, [(64, 96)])
        (found,) = detector.decode(detector(image()))
    assert len(found["boxes"]) > 3
    torch.testing.assert_close(found["boxes"], expected[0]["boxes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["scores"], expected[0]["scores"], rtol=0, atol=1e-6)
    assert torch.equal(found["labels"] + 1, expected[0]["labels"])


def test_more_boxes_go_into_nms_than_come_out() -> None:
    detector = build(train_proposals=30)
    rpn = detector.model.rpn
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == ({"training": 180, "testing": 120}, {"training": 30, "testing": 20})


def test_norms_are_those_of_the_trunk_and_layer4_trains() -> None:
    detector = build()
    assert len(detector.norms()) == 15  # of 20
    assert all(p.requires_grad for p in detector.model.roi_heads.parameters())
