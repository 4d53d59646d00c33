from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from detkd.detectors.torchvision import FCOS, RetinaNet
from detkd.errors import InputError
from detkd.losses.connectors import over_levels
from detkd.losses.decoupled import decoupled_l2
from detkd.losses.defeat_backbone import DeFeatBackbone
from detkd.losses.defeat_neck import DeFeatNeck
from detkd.losses.regions import object_masks
from detkd.losses.step import Step
from detkd.structures import Detection, Prediction, Target

SMALL: dict[str, Any] = {"classes": ("cat", "dog"), "image_size": (64, 64), "backbone": "resnet18", "width": 0.25}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return FCOS(**SMALL, channels=24).eval(), RetinaNet(**SMALL, channels=16).eval().requires_grad_(False)


def targets() -> list[Target]:
    boxes = torch.tensor([[4.0, 4.0, 40.0, 60.0], [30.0, 30.0, 34.0, 39.0]])
    return [
        Target(boxes=boxes, labels=torch.tensor([1, 0])),
        Target(boxes=boxes[:0], labels=torch.zeros(0, dtype=torch.int64)),
    ]


def ready(term: Any, pair: tuple[Any, Any]) -> Any:
    torch.manual_seed(1)
    term.setup(*pair)
    return term


def step(pair: tuple[Any, Any], wanted: list[Target] | None, **changes: Any) -> Step:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    student, teacher = pair
    values = {
        "teacher": teacher,
        "teacher_prediction": teacher(images),
        "student": student,
        "student_prediction": student(images),
    }
    return Step(images, wanted, **(values | changes))


def test_is_the_formula_on_the_maps_after_phi(pair: tuple[Any, Any]) -> None:
    term, one = ready(DeFeatNeck(2.0, 5.0), pair), step(pair, targets())
    parts = term(one)
    names, strides = ("p3", "p4", "p5", "p6", "p7"), [8, 16, 32, 64, 128]
    assert one.student_prediction is not None
    assert one.teacher_prediction is not None
    phi = dict(term.connectors.maps.items())
    assert all(tuple(phi[n].weight.shape) == (16, 24, 3, 3) for n in names)
    assert all(0 < phi[n].weight.abs().max() < 0.01 for n in names)
    mine = [phi[n](one.student_prediction.features[n]) for n in names]
    theirs = [one.teacher_prediction.features[n] for n in names]
    masks = object_masks(targets(), [(m.shape[-2], m.shape[-1]) for m in theirs], strides)
    objects, background = decoupled_l2(mine, theirs, masks)
    torch.testing.assert_close(parts, {"object": 2 * objects, "background": 5 * background})
    assert parts["object"] > 0


def test_backbone_has_the_two_last_stages(pair: tuple[Any, Any]) -> None:
    term, one = ready(DeFeatBackbone(2.0, 5.0), pair), step(pair, targets())
    assert one.student_prediction is not None
    assert one.teacher_prediction is not None
    assert set(term.connectors.maps) == {"c4", "c5"}
    mine = [term.connectors.maps[n](one.student_prediction.features[n]) for n in ("c4", "c5")]
    theirs = [one.teacher_prediction.features[n] for n in ("c4", "c5")]
    masks = object_masks(targets(), [(4, 4), (2, 2)], [16, 32])
    objects, background = decoupled_l2(mine, theirs, masks)
    torch.testing.assert_close(term(one), {"object": 2 * objects, "background": 5 * background})


@pytest.mark.parametrize("family", [DeFeatNeck, DeFeatBackbone])
def test_a_weight_of_zero_leaves_its_part_out(pair: tuple[Any, Any], family: Any) -> None:
    one = step(pair, targets())
    assert set(ready(family(background_weight=0.0), pair)(one)) == {"object"}
    assert set(ready(family(object_weight=0.0), pair)(one)) == {"background"}


def test_not_decoupled_with_equal_weights_is_plain_imitation(pair: tuple[Any, Any]) -> None:
    term, one = ready(DeFeatNeck(2.0, 2.0, decoupled=False), pair), step(pair, targets())
    plain = over_levels(term.connectors(one), lambda s, t: (s - t).square().mean()) / 5
    torch.testing.assert_close(sum(term(one).values()), plain)


@pytest.mark.parametrize("family", [DeFeatNeck, DeFeatBackbone])
def test_gradient_reaches_student_and_phi_alone(pair: tuple[Any, Any], family: Any) -> None:
    student, teacher = copy.deepcopy(pair)
    teacher.requires_grad_(True)
    term = ready(family(), (student, teacher))
    sum(term(step((student, teacher), targets())).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in term.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())


@pytest.mark.parametrize("family", [DeFeatNeck, DeFeatBackbone])
def test_without_any_object_background_alone(pair: tuple[Any, Any], family: Any) -> None:
    parts = ready(family(), pair)(step(pair, [targets()[1]] * 2))
    assert parts["object"] == 0
    assert parts["background"] > 0


def test_without_targets_the_teachers_detections_stand_in_decoded_once(pair: tuple[Any, Any]) -> None:
    calls = []

    class Sure(RetinaNet):
        def decode(self, prediction: Prediction) -> list[Detection]:
            calls.append(len(prediction))
            scores = torch.tensor([0.9, 0.31])
            found = [Detection(**targets()[0], scores=scores), Detection(**targets()[1], scores=torch.zeros(0))]
            return found

    torch.manual_seed(0)
    teacher = Sure(**SMALL, channels=16).eval()
    both = (pair[0], teacher)
    neck, backbone = ready(DeFeatNeck(), both), ready(DeFeatBackbone(), both)
    expected, one = step(both, targets()), step(both, None)
    torch.testing.assert_close(neck(one), neck(expected))
    torch.testing.assert_close(backbone(one), backbone(expected))
    assert calls == [2]
    strict = ready(DeFeatNeck(score_threshold=0.95), both)
    assert strict(one)["object"] == 0


def test_bfloat16_gives_float32(pair: tuple[Any, Any]) -> None:
    term = ready(DeFeatNeck(), pair)
    full = term(step(pair, targets()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = term(step(pair, targets()))
    assert all(v.dtype == torch.float32 for v in parts.values())
    torch.testing.assert_close(parts, full, rtol=0.05, atol=1e-3)


def test_levels_that_do_not_match_are_named(pair: tuple[Any, Any], tiny_detector: Any) -> None:
    with pytest.raises(InputError, match="loss 'defeat_neck': expected feature levels of the same strides"):
        DeFeatNeck().setup(pair[0], tiny_detector())
    with pytest.raises(InputError, match=r"loss.defeat_backbone.levels: expected maps of the teacher"):
        DeFeatBackbone().setup(pair[0], tiny_detector())
    with pytest.raises(InputError, match="no teacher"):
        DeFeatNeck().setup(pair[0], None)


def test_phi_is_no_part_of_the_student(pair: tuple[Any, Any]) -> None:
    before: dict[str, Tensor] = copy.deepcopy(pair[0].state_dict())
    term = ready(DeFeatNeck(), pair)
    assert pair[0].state_dict().keys() == before.keys()
    assert len(list(term.parameters())) == 10
