"""Anchors of images whose sides are no multiples of 32: torchvision pads them, detkd does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detkd.detectors.torchvision import FCOS, FasterRCNN, RetinaNet
from detkd.detectors.torchvision.anchors import PaddedAnchors, anchor_steps

SIZES, RATIOS = ((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3


def maps(height: int, width: int, strides: tuple[int, ...]) -> list[Tensor]:
    return [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides]


@pytest.mark.parametrize("side", [(96, 128), (800, 1344), (64, 32)])
def test_multiples_of_32_have_torchvisions_anchors(side: tuple[int, int]) -> None:
    strides = (8, 16, 32)
    images = ImageList(torch.empty(1).expand(1, 3, *side), [side])
    ours = PaddedAnchors(SIZES, RATIOS, strides)(images, maps(*side, strides))
    theirs = AnchorGenerator(SIZES, RATIOS)(images, maps(*side, strides))
    assert torch.equal(ours[0], theirs[0])


def test_steps_are_strides_up_to_32_and_as_torchvisions_above() -> None:
    assert anchor_steps(1333, (4, 8, 16, 32, 64)) == [4, 8, 16, 32, 64]
    assert anchor_steps(100, (8, 16, 32)) == [8, 16, 32]
    # 800 px have 25 cells of stride 32, 13 and 7 above: 800 // 13 and 800 // 7, as torchvision has them
    assert anchor_steps(800, (32, 64, 128)) == [32, 61, 114]
    assert anchor_steps(320, (32, 32, 64)) == [32, 32, 64]


@pytest.mark.parametrize("kind", [RetinaNet, FCOS, FasterRCNN])
def test_the_last_anchors_of_a_row_reach_the_end_of_an_odd_image(kind: type) -> None:
    detector = kind(classes=("a", "b"), image_size=(100, 140), backbone="resnet18", channels=32, width=0.25).eval()
    with torch.no_grad():
        prediction = detector(torch.rand(1, 3, 100, 140))
    network = detector.model.rpn if kind is FasterRCNN else detector.model
    images = ImageList(torch.empty(1).expand(1, 3, 100, 140), [(100, 140)])
    grids = [torch.zeros(1, 1, h, w) for h, w, _ in prediction.sizes]
    anchors = network.anchor_generator(images, grids)[0]
    count = prediction.sizes[0][0] * prediction.sizes[0][1] * prediction.sizes[0][2]
    centres = (anchors[:count, :2] + anchors[:count, 2:]) / 2
    stride = prediction.strides[0]
    assert centres[:, 0].max() == (prediction.sizes[0][1] - 1) * stride
    assert centres[:, 1].max() == (prediction.sizes[0][0] - 1) * stride
