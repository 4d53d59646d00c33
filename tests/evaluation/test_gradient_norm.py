from __future__ import annotations

from typing import Any

import pytest
import torch

from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.detectors.torchvision import FasterRCNN, RetinaNet
from detkd.evaluation.gradient_norm import gradient_norms
from detkd.structures import Prediction, Target

CLASSES = ("a", "b", "c")
SMALL: dict[str, Any] = {"classes": CLASSES, "image_size": (64, 64), "backbone": "resnet18", "width": 0.125, "channels": 16}
ROI: dict[str, Any] = {"anchor_size": 8, "roi_width": 16, "rois": 16, "train_proposals": 32, "proposals": 16}
DETECTORS = {
    "yolov3_tiny": lambda: yolov3_tiny(CLASSES, (64, 64), width=0.125),
    "retinanet": lambda: RetinaNet(anchor_size=8, **SMALL),
    "faster_rcnn": lambda: FasterRCNN(**ROI, **SMALL),
}
TARGET: Target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([1])}
NOTHING: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_equals_the_gradient_at_a_leaf_before_the_head(tiny_detector: Any) -> None:
    torch.manual_seed(0)
    detector = tiny_detector().eval()
    _, norms = gradient_norms(detector, images(), [TARGET])
    with torch.no_grad():
        whole = detector(images())
    leaf = whole.features["c3"].clone().requires_grad_()
    box, obj, cls = detector.head(leaf).flatten(2).transpose(1, 2).split([4, 1, 3], dim=-1)
    again = Prediction({"box": box, "obj": obj, "cls": cls}, whole.sizes, whole.strides, {"c3": leaf}, whole.image_size)
    sum(detector.loss(again, [TARGET]).values()).backward()
    assert leaf.grad is not None
    assert list(norms) == ["c3"]
    torch.testing.assert_close(norms["c3"], leaf.grad.square().sum(1).sqrt())


@pytest.mark.parametrize("kind", DETECTORS)
def test_detectors_are_left_as_they_were(kind: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[kind]().train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    prediction, norms = gradient_norms(detector, images(), [TARGET])
    assert norms.keys() <= prediction.features.keys()
    assert all(n.shape == prediction.features[name][:, 0].shape and not n.requires_grad for name, n in norms.items())
    assert sum(float(n.sum()) for n in norms.values()) > 0
    assert detector.training
    assert all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    _, again = gradient_norms(detector, images(), [TARGET])
    assert all(torch.equal(n, again[name]) for name, n in norms.items())


@pytest.mark.parametrize("kind", DETECTORS)
def test_images_without_objects_and_frozen_detectors(kind: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[kind]().requires_grad_(False)
    with torch.no_grad():
        _, norms = gradient_norms(detector, images(), [NOTHING])
    assert all(bool(n.isfinite().all()) for n in norms.values())
    assert sum(float(n.sum()) for n in norms.values()) > 0
