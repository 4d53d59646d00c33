"""What the tests of inversion share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def teacher(tiny_detector: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    detector = tiny_detector(image_size=(32, 32))
    for norm in detector.norms():  # statistics that random images do not have by chance
        norm.mean.normal_()
        norm.var.uniform_(0.5, 1.5)
    return detector
