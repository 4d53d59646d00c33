from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.errors import InputError
from detkd.losses.mimic import Mimic, mimic_loss
from detkd.losses.step import Step
from detkd.structures import Prediction

SIZES = ((4, 3, 2), (2, 2, 2))
SITES = [24, 8]


def prediction(seed: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    raw = {
        name: torch.randn(batch, sum(SITES), k, generator=generator).to(dtype)
        for name, k in (("box", 4), ("obj", 1), ("cls", 3))
    }
    return Prediction(raw=raw, sizes=SIZES, strides=(8, 16), features={}, image_size=(32, 24))


def reference(student: Prediction, teacher: Prediction, scaled: bool = False) -> float:
    """By loops over levels and names, in float64."""
    total, start = 0.0, 0
    channels = sum(raw.shape[-1] for raw in student.raw.values())
    for sites in SITES:
        squares = 0.0
        for name in student.raw:
            a, b = (p.raw[name][:, start : start + sites].double().numpy() for p in (student, teacher))
            sure = 1 / (1 + np.exp(-teacher.raw["obj"][:, start : start + sites].double().numpy()))
            squares += np.sum((a - b) ** 2 * (sure if scaled and name != "obj" else 1))
        total += squares / (len(student) * sites * channels)
        start += sites
    return total


def test_equals_the_formula_in_float64() -> None:
    student, teacher = prediction(0), prediction(1)
    assert mimic_loss(student, teacher).item() == pytest.approx(reference(student, teacher), rel=1e-6)


def test_scaled_by_objectness_equals_the_formula_in_float64() -> None:
    student, teacher = prediction(0), prediction(1)
    assert mimic_loss(student, teacher, True).item() == pytest.approx(reference(student, teacher, True), rel=1e-6)
    assert mimic_loss(student, student, True).item() == 0


def test_where_the_teacher_sees_nothing_only_objectness_is_learnt() -> None:
    student, teacher = prediction(0), prediction(1)
    teacher.raw["obj"].fill_(-100.0)
    student.raw = {name: raw.requires_grad_() for name, raw in student.raw.items()}
    mimic_loss(student, teacher, objectness_scaled=True).backward()
    for name, raw in student.raw.items():
        assert raw.grad is not None
        assert (raw.grad.abs() > 0).all() if name == "obj" else (raw.grad.abs() < 1e-30).all()


def test_scaling_needs_objectness(tiny_detector: Any) -> None:
    class OneOutput(tiny_detector):
        def forward(self, images: torch.Tensor) -> Prediction:
            p = super().forward(images)
            return replace(p, raw={"all": torch.cat(list(p.raw.values()), -1)})

    with pytest.raises(InputError, match=r"loss\.mimic\.objectness_scaled: expected raw outputs with one channel 'obj'"):
        Mimic(objectness_scaled=True).setup(OneOutput(), OneOutput())
    yolo = yolov3_tiny(("a", "b"), (32, 32), width=0.125)
    Mimic(objectness_scaled=True).setup(yolo, yolo)


def test_known_value_one_level_is_the_mean_square() -> None:
    raw = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    one = Prediction(raw={"all": raw}, sizes=((1, 2, 1),), strides=(8,), features={}, image_size=(8, 16))
    zero = replace(one, raw={"all": torch.zeros_like(raw)})
    assert mimic_loss(one, zero).item() == pytest.approx((1 + 4 + 9 + 16) / 4)


def test_zero_when_equal() -> None:
    assert mimic_loss(prediction(0), prediction(0)).item() == 0


def test_splitting_channels_into_names_changes_nothing() -> None:
    def joined(p: Prediction) -> Prediction:
        return replace(p, raw={"all": torch.cat(list(p.raw.values()), -1)})

    student, teacher = prediction(0), prediction(1)
    torch.testing.assert_close(mimic_loss(student, teacher), mimic_loss(joined(student), joined(teacher)))


def test_order_of_names_changes_nothing() -> None:
    student, teacher = prediction(0), prediction(1)
    turned = replace(teacher, raw=dict(reversed(teacher.raw.items())))
    assert torch.equal(mimic_loss(student, teacher), mimic_loss(student, turned))


def test_batch_is_the_mean_of_its_images() -> None:
    student, teacher = prediction(0), prediction(1)
    singles = [mimic_loss(student.image(i), teacher.image(i)) for i in range(2)]
    torch.testing.assert_close(mimic_loss(student, teacher), torch.stack(singles).mean())


def test_gradient_reaches_the_student_alone() -> None:
    student, teacher = prediction(0), prediction(1)
    for p in (student, teacher):
        p.raw = {name: raw.requires_grad_() for name, raw in p.raw.items()}
    mimic_loss(student, teacher).backward()
    sites = torch.tensor([float(n) for n in SITES for _ in range(n)])[:, None]
    for name, raw in student.raw.items():
        torch.testing.assert_close(raw.grad, (2 * (raw - teacher.raw[name]) / (2 * sites * 8)).detach())
        assert teacher.raw[name].grad is None


def test_float32_inside() -> None:
    student, teacher = prediction(0, dtype=torch.bfloat16), prediction(1, dtype=torch.bfloat16)
    loss = mimic_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference(student, teacher), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda p: replace(p, raw={"box": p.raw["box"]}), "names: teacher ['box'], student ['box', 'cls', 'obj']"),
        (lambda p: replace(p, raw=p.raw | {"cls": p.raw["cls"][..., :2]}), "channels of 'cls': teacher 2, student 3"),
        (lambda p: replace(p, sizes=((4, 2, 3), (2, 2, 2))), "levels"),
        (lambda p: p.image(0), "images: teacher 1, student 2"),
    ],
)
def test_error_names_what_differs(change: Any, found: str) -> None:
    with pytest.raises(InputError, match="labels=teacher") as error:
        mimic_loss(prediction(0), change(prediction(1)))
    assert found in str(error.value)


def test_setup_takes_equal_layouts_and_leaves_both_as_they_were(tiny_detector: Any) -> None:
    student, teacher = tiny_detector().train(), tiny_detector(width=12).eval()
    student.stages[0].eval()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    state = torch.random.get_rng_state()
    Mimic().setup(student, teacher)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert student.training
    assert not student.stages[0].training
    assert not teacher.training


def test_setup_refuses_other_classes(tiny_detector: Any) -> None:
    with pytest.raises(InputError, match="class 1: teacher 'dog', student 'b'"):
        Mimic().setup(tiny_detector(classes=("a", "b")), tiny_detector(classes=("a", "dog")))
    with pytest.raises(InputError, match="number of classes: teacher 3, student 2"):
        Mimic().setup(tiny_detector(classes=("a", "b")), tiny_detector())


def test_setup_refuses_other_layouts(tiny_detector: Any) -> None:
    teacher = tiny_detector()
    teacher.stages[2][0].stride = (1, 1)
    with pytest.raises(InputError, match=r"levels .* teacher \(\(16, 16, 1\),\), student \(\(8, 8, 1\),\).*labels=teacher"):
        Mimic().setup(tiny_detector(), teacher)


def test_setup_needs_a_teacher(tiny_detector: Any) -> None:
    with pytest.raises(InputError, match="no teacher"):
        Mimic().setup(tiny_detector(), None)


def test_term_reads_the_step(tiny_detector: Any) -> None:
    student, teacher, images = tiny_detector(), tiny_detector(), torch.rand(2, 3, 64, 64)
    step = Step(images, teacher_prediction=teacher(images), student=student, student_prediction=student(images))
    assert step.student_prediction is not None
    assert step.teacher_prediction is not None
    assert torch.equal(Mimic()(step)["mimic"], mimic_loss(step.student_prediction, step.teacher_prediction))


def test_the_same_layout_with_other_anchors_is_refused() -> None:
    classes = ("a", "b")
    anchors = [(8, 8), (12, 12), (16, 16), (20, 20), (24, 24), (28, 28)]
    student = yolov3_tiny(classes, (32, 32), width=0.125)
    teacher = yolov3_tiny(classes, (32, 32), width=0.125, anchors=anchors)
    with pytest.raises(InputError, match="anchors and offsets"):
        Mimic().setup(student, teacher)
    Mimic().setup(yolov3_tiny(classes, (32, 32), width=0.25, anchors=anchors), teacher)
