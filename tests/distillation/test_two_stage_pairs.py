"""Terms on proposals where teacher or student has no pyramid or more than one stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detkd.detectors.torchvision import CascadeRCNN, FasterRCNN, FasterRCNNC4
from detkd.losses.careg import ClassAwareRegression
from detkd.losses.composite import Composite
from detkd.losses.defeat_proposals import DeFeatProposals
from detkd.losses.feature_l2 import FeatureL2
from detkd.losses.prediction import PredictionImitation
from detkd.losses.sgfi import SGFI
from detkd.losses.step import Step
from detkd.structures import Target

SMALL: dict[str, Any] = {"classes": ("cat", "dog", "kite"), "image_size": (64, 64), "backbone": "resnet18", "anchor_size": 8}
COUNTS: dict[str, Any] = {"rois": 16, "proposals": 24, "train_proposals": 24}
PYRAMID: dict[str, Any] = {"roi_width": 32}
PAIRS = ("c4-c4", "cascade-cascade", "cascade-fpn", "fpn-cascade")


def detector(kind: str, seed: int, width: float, channels: int) -> Any:
    torch.manual_seed(seed)
    if kind == "c4":
        made: Any = FasterRCNNC4(width=width, **SMALL, **COUNTS)
    else:
        family = CascadeRCNN if kind == "cascade" else FasterRCNN
        made = family(width=width, channels=channels, **SMALL, **COUNTS, **PYRAMID)
    for name, module in made.named_modules():
        if isinstance(module, nn.Linear) and name.endswith("bbox_pred"):
            nn.init.normal_(module.weight, std=0.1)
    return made


def terms() -> dict[str, Any]:
    return {
        "careg": ClassAwareRegression(per_image=16),
        "prediction": PredictionImitation(per_image=16),
        "defeat_proposals": DeFeatProposals(per_image=16),
        "sgfi": SGFI(16),
        "feature_l2": FeatureL2(),
    }


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("labelled", [True, False])
def test_every_term_is_finite_and_reaches_the_student(pair: str, labelled: bool) -> None:
    first, second = pair.split("-")
    teacher, student = detector(first, 0, 0.25, 24).eval().requires_grad_(False), detector(second, 1, 0.125, 16).train()
    loss = Composite(terms(), dict.fromkeys(terms(), 1.0))
    torch.manual_seed(0)
    loss.setup(student, teacher)
    images = torch.rand(2, 3, 64, 64)
    seen = teacher(images)
    boxes = teacher.propose(seen)[0][: int(labelled)]  # so that one proposal is positive
    none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    targets = [Target(boxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64)), none]
    before = {n: v.clone() for n, v in student.state_dict().items() if "roi_heads" in n and "running" in n}
    step = Step(images, targets, teacher, seen, student, student(images))
    for name, term in loss.terms.items():
        total = torch.stack(list(term(step).values())).sum()
        assert torch.isfinite(total), name
        student.zero_grad()
        if labelled or name != "careg":
            total.backward(retain_graph=True)
            assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in student.parameters()), name
        else:
            assert total == 0  # a mean over positives, of which there are none
    assert all(torch.equal(student.state_dict()[n], v) for n, v in before.items())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("kind", ["c4", "cascade"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_predictions(kind: str) -> None:
    teacher = detector(kind, 0, 0.125, 16).eval()
    images = torch.rand(2, 3, 64, 64)
    targets = [Target(boxes=torch.tensor([[8.0, 8.0, 40.0, 44.0]]), labels=torch.tensor([1]))] * 2
    step = Step(images, targets, teacher, teacher(images), teacher, teacher(images))
    for name in ("careg", "prediction", "defeat_proposals"):
        values = terms()[name](step)
        assert all(v.abs() < 1e-5 for v in values.values()), (name, values)
