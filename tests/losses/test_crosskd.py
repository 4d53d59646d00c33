from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkd.detectors.torchvision import FCOS, FasterRCNN, RetinaNet
from detkd.errors import InputError
from detkd.losses.crosskd import CrossKD, crosskd_loss, quality_focal
from detkd.losses.step import Step

SMALL: dict[str, Any] = {"classes": ("cat", "dog"), "image_size": (64, 64), "backbone": "resnet18", "width": 0.25}
KINDS: dict[str, Any] = {
    "retinanet": lambda **c: RetinaNet(**SMALL | {"channels": 24, "anchor_size": 8} | c),
    "retinanet_v2": lambda **c: RetinaNet("retinanet_resnet50_fpn_v2", **SMALL | {"channels": 24, "anchor_size": 8} | c),
    "fcos": lambda **c: FCOS(**SMALL | {"channels": 24} | c),
}


def data(dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    """Pairs (student, teacher) of logits (2, 5, 3), boxes (2, 5, 4) and centre-ness (2, 5, 1)."""
    g = torch.Generator().manual_seed(0)

    def draw(size: int) -> Tensor:
        return torch.randn(2, 5, size, generator=g, dtype=torch.float64)

    corners = [10 * draw(2) for _ in range(2)]
    boxes = [torch.cat([c, c + 8 + draw(2).abs()], dim=2) for c in corners]
    pairs = ([2 * draw(3), 2 * draw(3)], boxes, [draw(1), draw(1)])
    return tuple(tuple(v.to(dtype) for v in pair) for pair in pairs)  # type: ignore[return-value]


def reference(cls: Any, boxes: Any, ctr: Any, beta: float, threshold: float = 0.3) -> list[float]:
    """By loops over sites and classes, in float64."""

    def probability(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    def focal(s: float, t: float) -> float:
        a, b = probability(s), probability(t)
        return abs(a - b) ** beta * -(b * np.log(a) + (1 - b) * np.log(1 - a))

    def giou(a: Any, b: Any) -> float:
        wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(wide, 0) * max(high, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        return shared / union - (around - union) / around

    values = [[v.detach().double().flatten(0, 1).tolist() for v in pair] for pair in (cls, boxes, ctr)]
    (said, wanted), (box_s, box_t), (ctr_s, ctr_t) = values
    sums, count = [0.0, 0.0, 0.0], 0.0
    for i in range(len(said)):
        weight = max(probability(z) for z in wanted[i])
        count += weight > threshold
        sums[0] += sum(focal(s, t) for s, t in zip(said[i], wanted[i]))
        sums[1] += weight * (1 - giou(box_s[i], box_t[i]))
        sums[2] += weight * focal(ctr_s[i][0], ctr_t[i][0])
    return [s / max(count, 1) for s in sums]


def loss_of(cls: Any, boxes: Any, ctr: Any, beta: float = 1.0, threshold: float = 0.3) -> dict[str, Tensor]:
    """Of pairs (student, teacher)."""
    return crosskd_loss(cls[1], cls[0], boxes, ctr, beta, threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.8, 0.9999])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_equals_the_formula_in_float64(beta: float, threshold: float) -> None:
    found = loss_of(*data(), beta, threshold)
    assert list(found) == ["cls", "box", "ctr"]
    expected = reference(*data(), beta, threshold)
    assert [v.item() for v in found.values()] == pytest.approx(expected, rel=1e-5)
    assert crosskd_loss(data()[0][1], boxes=data()[1], beta=beta, score_threshold=threshold).keys() == {"box"}


def test_background_does_not_dilute() -> None:
    """A hundred sites that the teacher takes for background add what they differ by, and nothing to n."""
    (student, teacher), boxes, ctr = data()
    quiet = torch.full((2, 100, 3), -6.0, dtype=torch.float64)
    far = torch.tensor([0.0, 0, 8, 8], dtype=torch.float64).expand(2, 100, 4)
    more = (torch.cat([student, quiet], 1), torch.cat([teacher, quiet], 1)), [torch.cat([b, far], 1) for b in boxes]
    for name, value in crosskd_loss(more[0][1], more[0][0], tuple(more[1])).items():  # type: ignore[arg-type]
        torch.testing.assert_close(value, loss_of((student, teacher), boxes, ctr)[name], rtol=1e-6, atol=1e-6)


def test_known_value() -> None:
    half = np.log(2)
    assert quality_focal(torch.zeros(1), torch.tensor([50.0])).item() == pytest.approx(0.5 * half)
    assert quality_focal(torch.zeros(1), torch.tensor([50.0]), beta=2.0).item() == pytest.approx(0.25 * half)
    assert quality_focal(torch.tensor([3.0]), torch.tensor([3.0])) == 0


def test_gradient_reaches_the_student_alone() -> None:
    pairs = [[v.requires_grad_() for v in pair] for pair in data()]
    students, teachers = zip(*pairs)

    def total(*values: Tensor) -> Tensor:
        return torch.stack(list(loss_of(*zip(values, teachers)).values())).sum()

    assert torch.autograd.gradcheck(total, students)
    total(*students).backward()
    assert all(v.grad is None for v in teachers)
    assert all(v.grad is not None and v.grad.abs().max() > 0 for v in students)


def test_zero_when_equal() -> None:
    equal = loss_of(*((t, t) for _, t in data()))
    assert [v.item() for v in equal.values()] == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_gradient_of_equal_logits_is_a_number() -> None:
    """With beta below 1 it would not be: the derivative of |d|^beta at 0."""
    logits = torch.tensor([0.3, -2.0], requires_grad=True)
    quality_focal(logits, logits.detach(), beta=1.0).sum().backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(quality_focal(logits, logits.detach(), beta=0.5).sum(), logits)
    assert not torch.isfinite(gradient).all()
    with pytest.raises(InputError, match=r"loss.crosskd.beta: expected a number from 1, got 0.5"):
        CrossKD(beta=0.5)


def made(kind: str, **changes: Any) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(0)
    student, teacher = KINDS[kind](**changes).train(), KINDS[kind]().eval().requires_grad_(False)
    if kind == "fcos":  # distances are behind a ReLU: with these its boxes have an area
        nn.init.constant_(teacher.model.head.regression_head.bbox_reg.bias, 1.0)
    return student, teacher, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def step_of(student: Any, teacher: Any, images: Tensor) -> Step:
    with torch.no_grad():
        known = teacher(images)
    return Step(images, None, teacher, known, student, student(images))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [1, 3, 4])
def test_a_student_that_is_its_teacher_loses_nothing(kind: str, layer: int) -> None:
    _, teacher, images = made(kind)
    term = CrossKD(layer)
    term.setup(teacher, teacher)
    values = term(step_of(teacher, teacher, images))
    assert values.keys() == ({"cls", "box", "ctr"} if kind == "fcos" else {"cls", "box"})
    assert values["cls"].item() == 0
    boxes = teacher.boxes(teacher(images), differentiable=True)
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert values["box"].item() == pytest.approx(0, abs=1e-4)
    assert values.get("ctr", torch.zeros(())).item() == 0


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_the_term_is_the_formula_on_crossed_predictions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, images = made(kind)
    term = CrossKD(cls_weight=2.0, box_weight=3.0, beta=2.0, score_threshold=0.6)
    term.setup(student, teacher)
    step = step_of(student, teacher, images)
    known = step.teacher_prediction
    assert known is not None
    generator = torch.Generator().manual_seed(4)
    draw = {name: torch.randn(raw.shape, generator=generator) for name, raw in known.raw.items()}
    # centre-ness and classes around 0, so that some sites are positive; box outputs that stay near the teacher's
    for name in known.raw.keys() - {"box"}:
        known.raw[name].copy_(torch.randn(draw[name].shape, generator=generator))
    raw = draw | {"box": known.raw["box"] + 0.1 * draw["box"].abs()}
    crossed = replace(known, raw=raw)
    monkeypatch.setattr(teacher, "head_from", lambda *_: crossed)
    values = term(step)
    boxes = teacher.boxes(crossed, differentiable=True), teacher.boxes(known, differentiable=True)
    centre = (raw["ctr"], known.raw["ctr"]) if kind == "fcos" else (torch.zeros(2, len(raw["cls"][0]), 1),) * 2
    expected = reference((raw["cls"], known.raw["cls"]), boxes, centre, 2.0, 0.6)
    weights = {"cls": 2.0, "box": 3.0, "ctr": 3.0}
    for (name, weight), value in zip(weights.items(), expected):
        assert kind != "fcos" or value > 0
        if name in values:
            assert values[name].item() == pytest.approx(weight * value, rel=1e-3)
    assert values.keys() == ({"cls", "box", "ctr"} if kind == "fcos" else {"cls", "box"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [24, 48])
def test_the_students_maps_go_through_the_teachers_head(kind: str, channels: int) -> None:
    student, teacher, images = made(kind, channels=channels)
    term = CrossKD(2)
    term.setup(student, teacher)
    assert len(list(term.parameters())) == (0 if channels == 24 else 4)
    step = step_of(student, teacher, images)
    values = term(step)
    cls, box = student.towers(step.student_prediction, 2)
    head = teacher.model.head
    crossed = [head.classification_head.conv[2 if kind != "fcos" else 6 :](term.connectors["cls"](m)) for m in cls]
    logits = torch.cat([head.classification_head.cls_logits(m).flatten(2).flatten(1) for m in crossed], 1)
    again = teacher.head_from([term.connectors["cls"](m) for m in cls], [term.connectors["box"](m) for m in box], 2, (64, 64))
    torch.testing.assert_close(again.raw["cls"].flatten(1).sort().values, logits.sort().values)
    assert all(v.dtype == torch.float32 and torch.isfinite(v) and v >= 0 for v in values.values())
    torch.stack(list(values.values())).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    reached = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any("backbone.fpn" in n for n in reached)
    assert not any("cls_logits" in n or "bbox_reg" in n for n in reached)
    assert all(p.grad is not None for p in term.parameters())


def test_float32_under_autocast_and_parts_of_weight_zero() -> None:
    student, teacher, images = made("fcos", channels=48)
    both = CrossKD()
    torch.manual_seed(7)
    both.setup(student, teacher)
    expected = both(step_of(student, teacher, images))
    for options, names in (({"box_weight": 0.0}, {"cls"}), ({"cls_weight": 0.0}, {"box", "ctr"})):
        term = CrossKD(**options)  # type: ignore[arg-type]
        term.setup(student, teacher)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = term(step_of(student, teacher, images))
        assert values.keys() == names
        assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in values.values())
        # what is not in use has no connector, so that every parameter of the term gets a gradient (DDP waits for each)
        assert list(term.connectors) == (["cls"] if names == {"cls"} else ["box"])
        for name, parameter in term.named_parameters():
            parameter.data = both.get_parameter(name).data.clone()
        values = term(step_of(student, teacher, images))
        assert {name: v.item() for name, v in values.items()} == {name: expected[name].item() for name in names}
        torch.stack(list(values.values())).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in term.parameters())


def test_setup_and_options() -> None:
    student, teacher, _ = made("fcos")
    two = FasterRCNN(**SMALL, channels=16)
    with pytest.raises(InputError, match=r"loss 'crosskd': expected a teacher with a dense head.*FCOS, RetinaNet"):
        CrossKD().setup(student, two)
    with pytest.raises(InputError, match=r"loss 'crosskd': expected a student with a dense head"):
        CrossKD().setup(None, teacher)
    with pytest.raises(InputError, match="two detectors of one kind, found RetinaNet and FCOS"):
        CrossKD().setup(student, KINDS["retinanet"]())
    with pytest.raises(InputError, match="expected the same classes"):
        CrossKD().setup(KINDS["fcos"](classes=("cat", "cow")), teacher)
    with pytest.raises(InputError, match=r"loss.crosskd.layer: .* from 1 to 4, got 5"):
        CrossKD(5).setup(student, teacher)
    for bad, key in (
        ({"layer": 0}, "layer"),
        ({"beta": 0.0}, "beta"),
        ({"score_threshold": 1.0}, "score_threshold"),
        ({"cls_weight": 0.0, "box_weight": 0.0}, ""),
    ):
        with pytest.raises(InputError, match=rf"loss.crosskd.*{key}"):
            CrossKD(**bad)  # type: ignore[arg-type]
