"""The stand-ins are honest: the tiny detector satisfies the interface and learns."""

from __future__ import annotations

from typing import Any

import torch

from detkd.detectors.protocol import Detector
from detkd.evaluation.coco import ap50


def test_satisfies_the_interface(tiny_detector: Any) -> None:
    detector = tiny_detector(width=4)
    assert isinstance(detector, Detector)
    twin = tiny_detector(**detector.arguments())
    twin.load_state_dict(detector.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(twin.eval()(images).raw["cls"], detector.eval()(images).raw["cls"])
    assert len(detector.norms()) == 3


def test_learns_to_find_squares(doubles: Any) -> None:
    torch.manual_seed(0)
    detector, data = doubles.TinyDetector(), doubles.Squares(n=8)
    images, targets = data.images.float() / 255, [data[i]["target"] for i in range(8)]
    optimizer = torch.optim.Adam(detector.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        sum(detector.loss(detector(images), targets).values()).backward()
        optimizer.step()
    detector.eval()
    assert ap50(detector.decode(detector(images)), targets).value > 0.9
