from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkd.errors import InputError
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.losses.mimic import Mimic
from detkd.losses.step import Step
from detkd.losses.weight_schedule import WeightSchedule


class Brightness(nn.Module):
    """A term that pools the batch and has a parameter, drawn when it is set up."""

    pools_batch = True

    def setup(self, student: Any, teacher: Any) -> None:
        self.scale = nn.Parameter(torch.rand(1))

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"value": step.images.mean()}


class Forbidden(nn.Module):
    """A term that must not be touched."""

    pools_batch = False

    def setup(self, student: Any, teacher: Any) -> None:
        raise AssertionError("set up")

    def forward(self, step: Step) -> dict[str, Tensor]:
        raise AssertionError("called")


class Reporting(nn.Module):
    """A term that reports a number beside its loss."""

    pools_batch = True

    def setup(self, student: Any, teacher: Any) -> None:
        pass

    def forward(self, step: Step) -> dict[str, Tensor]:
        step.record("contrast", 100 * step.images.std())
        return {"value": step.images.mean()}


class Preparing(nn.Module):
    """A term that is over with its setup."""

    pools_batch = False
    adds_loss = False

    def setup(self, student: Any, teacher: Any) -> None:
        self.done = True

    def forward(self, step: Step) -> dict[str, Tensor]:
        raise AssertionError("called")


@pytest.fixture
def step(tiny_detector: Any) -> Step:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 64, 64, generator=generator)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 30.0], [1.0, 1.0, 30.0, 30.0]])
    targets = [{"boxes": boxes[:n], "labels": torch.arange(n)} for n in (2, 0, 1)]
    student, teacher = tiny_detector().eval(), tiny_detector().eval()
    return Step(images, targets, teacher, teacher(images), student, student(images))


def test_weighted_sum_and_unweighted_parts(step: Step) -> None:
    composite = Composite({"detection": DetectionLoss(), "mimic": Mimic()}, {"detection": 0.5, "mimic": 3})
    total, parts = composite(step)
    assert parts.keys() == {"detection", "detection/box", "detection/obj", "detection/cls", "mimic"}
    torch.testing.assert_close(parts["detection"], parts["detection/box"] + parts["detection/obj"] + parts["detection/cls"])
    torch.testing.assert_close(total, 0.5 * parts["detection"] + 3 * parts["mimic"])
    assert total.requires_grad


def test_overrides_replace_weights_for_one_call(step: Step) -> None:
    composite = Composite({"detection": DetectionLoss(), "mimic": Mimic()}, {"detection": 1, "mimic": 1})
    total, parts = composite(step, {"detection": 0, "mimic": 2})
    assert parts.keys() == {"mimic"}
    torch.testing.assert_close(total, 2 * parts["mimic"])


def test_weight_zero_is_neither_set_up_nor_called(step: Step) -> None:
    composite = Composite({"mimic": Mimic(), "off": Forbidden()}, {"mimic": 1, "off": 0.0})
    composite.setup(step.student, step.teacher)
    total, parts = composite(step)
    assert list(composite.terms) == ["mimic"]
    assert torch.equal(total, parts["mimic"])


def test_setup_leaves_the_global_random_state(step: Step) -> None:
    composite = Composite({"brightness": Brightness()}, {"brightness": 1})
    before = torch.random.get_rng_state()
    composite.setup(step.student, step.teacher)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(list(composite.parameters())) == 1


def test_per_image_sums_have_the_batch_as_their_mean(step: Step) -> None:
    composite = Composite(
        {"detection": DetectionLoss(), "mimic": Mimic(), "b": Brightness()}, {"detection": 0.5, "mimic": 3, "b": 2}
    )
    totals = composite.per_image(step)
    assert totals.shape == (3,)
    assert not totals.requires_grad
    torch.testing.assert_close(totals.mean(), composite(step)[0].detach())
    alone = Composite({"mimic": Mimic()}, {"mimic": 3}).per_image(step)
    torch.testing.assert_close(alone[1], 3 * Mimic()(step.image(1))["mimic"].detach())


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="one weight for each of"):
        Composite({"mimic": Mimic()}, {"mimc": 1})
    with pytest.raises(ValueError, match="non-zero weight"):
        Composite({"mimic": Mimic()}, {"mimic": 0})


def test_schedules_say_the_weights_of_a_step(step: Step) -> None:
    schedule = WeightSchedule(warmup_steps=3)
    composite = Composite(
        {"detection": DetectionLoss(), "mimic": Mimic(), "off": Forbidden()},
        {"detection": 1, "mimic": 2, "off": 0},
        {"mimic": schedule, "off": schedule},
    )
    assert [composite.weights_at(s, 100) for s in (0, 2, 3)] == [{"mimic": 0.5}, {"mimic": 1.5}, {"mimic": 2.0}]
    total, parts = composite(step, composite.weights_at(0, 100))
    torch.testing.assert_close(total, parts["detection"] + 0.5 * parts["mimic"])
    with pytest.raises(ValueError, match=r"schedules for some of \['mimic'\], got some for \['mimc'\]"):
        Composite({"mimic": Mimic()}, {"mimic": 1}, {"mimc": schedule})


def test_recorded_numbers_are_logged_and_in_no_sum(step: Step) -> None:
    step.images.requires_grad_()
    composite = Composite({"a": Reporting(), "mimic": Mimic()}, {"a": 2, "mimic": 1})
    per_image = composite.per_image(step)
    total, parts = composite(step)
    assert parts.keys() == {"a", "a/contrast", "mimic"}
    torch.testing.assert_close(parts["a/contrast"], 100 * step.images.std())
    assert not parts["a/contrast"].requires_grad
    torch.testing.assert_close(total, 2 * parts["a"] + parts["mimic"])
    torch.testing.assert_close(per_image.mean(), total.detach())


def test_a_term_that_adds_no_loss_is_set_up_and_not_called(step: Step) -> None:
    term = Preparing()
    composite = Composite({"prepare": term, "mimic": Mimic()}, {"prepare": 1, "mimic": 1})
    composite.setup(step.student, step.teacher)
    assert term.done
    total, parts = composite(step)
    assert parts.keys() == {"mimic"}
    torch.testing.assert_close(composite.per_image(step).mean(), total.detach())
    with pytest.raises(InputError, match="expected a term that adds a loss, found prepare alone"):
        Composite({"prepare": Preparing()}, {"prepare": 1})
