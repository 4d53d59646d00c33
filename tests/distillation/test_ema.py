from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from detkd.distillation.ema import EMA


def fill(detector: Any, value: float) -> Any:
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            tensor.fill_(value)
    return detector


def test_known_values(tiny_detector: Any) -> None:
    student = fill(tiny_detector(), 0.0)
    ema = EMA(student, decay=0.9, warmup_steps=2)
    fill(student, 1.0)
    expected = 0.0
    for t in (1, 2, 3):
        ema.update(student)
        decay = 0.9 * (1 - math.exp(-t / 2))
        expected = decay * expected + (1 - decay) * 1.0
        for name, value in ema.average.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, torch.full_like(value, expected), msg=name)
            else:
                assert value.item() == 1, "counts are copied"


def test_decay_ramp() -> None:
    def ramp(tau: int, t: int) -> float:
        return EMA(torch.nn.Linear(1, 1), decay=0.9998, warmup_steps=tau).decay_at(t)  # type: ignore[arg-type]

    assert ramp(0, 1) == 0.9998
    assert ramp(2000, 1) == pytest.approx(0.9998 / 2000, rel=1e-3)
    assert ramp(2000, 2000) == pytest.approx(0.9998 * (1 - math.exp(-1)))
    assert ramp(2000, 100_000) == pytest.approx(0.9998)


def test_is_a_frozen_copy_in_eval_mode(tiny_detector: Any) -> None:
    student = tiny_detector().train()
    before = copy.deepcopy(student.state_dict())
    ema = EMA(student).train()
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    fill(student, 3.0)
    assert all(torch.equal(value, before[name]) for name, value in ema.detector.state_dict().items())


def test_state_dict_carries_weights_and_count(tiny_detector: Any) -> None:
    student = tiny_detector()
    ema, other = EMA(student, 0.9, 5), EMA(tiny_detector(), 0.9, 5)
    for value in (1.0, 2.0):
        ema.update(fill(student, value))
    other.load_state_dict(ema.state_dict())
    assert other.updates == 2
    for one in (ema, other):
        one.update(fill(student, 7.0))
    assert all(torch.equal(a, b) for a, b in zip(ema.average.state_dict().values(), other.average.state_dict().values()))


@pytest.mark.parametrize("arguments", [{"decay": 1.0}, {"decay": -0.1}, {"warmup_steps": -1}])
def test_bad_arguments(tiny_detector: Any, arguments: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        EMA(tiny_detector(), **arguments)


def test_start_takes_the_weights_as_they_are(tiny_detector: Any) -> None:
    student = fill(tiny_detector(), 0.0)
    ema = EMA(student, decay=0.9)
    fill(student, 3.0)
    ema.start(student)
    assert all((value == 3).all() for value in ema.average.state_dict().values())
    assert ema.updates == 0
