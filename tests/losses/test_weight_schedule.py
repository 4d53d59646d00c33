from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detkd.errors import InputError
from detkd.losses.weight_schedule import WeightSchedule, weight_factor


def test_the_rise_is_linear_and_the_first_step_counts() -> None:
    assert [weight_factor(s, 10, warmup_steps=3) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [weight_factor(s, 10, warmup_steps=1, start=0.5) for s in range(3)] == [0.75, 1.0, 1.0]
    assert [weight_factor(s, 10, warmup_steps=1, start=3.0) for s in range(2)] == [2.0, 1.0]  # from above


def test_the_fall_begins_where_it_says_and_ends_with_the_run() -> None:
    linear = [weight_factor(s, 8, decay="linear", decay_from=0.5, end=0.2) for s in (0, 4, 6, 8, 9)]
    assert linear == pytest.approx([1, 1, 0.6, 0.2, 0.2])
    cosine = [weight_factor(s, 8, decay="cosine", decay_from=0.5, end=0.2) for s in (4, 5, 6, 8)]
    assert cosine == pytest.approx([1, 0.2 + 0.4 * (1 + math.cos(math.pi / 4)), 0.6, 0.2])
    assert weight_factor(8, 8, decay="linear") == 0


def test_rise_and_fall_that_overlap_are_multiplied() -> None:
    assert weight_factor(4, 10, warmup_steps=9, decay="linear") == pytest.approx(0.5 * 0.6)


@given(
    st.integers(1, 1000),
    st.integers(0, 2000),
    st.floats(0, 2),
    st.sampled_from(["none", "linear", "cosine"]),
    st.floats(0, 0.99),
    st.floats(0, 2),
)
def test_no_step_of_a_run_has_a_factor_of_0(
    total: int, warmup: int, start: float, decay: Any, decay_from: float, end: float
) -> None:
    highest = max(1.0, start) * max(1.0, end)
    for step in {0, total // 2, total - 1}:
        assert 0 < weight_factor(step, total, warmup, start, decay, decay_from, end) <= highest * (1 + 1e-12)


def test_the_settings_are_those_of_the_function() -> None:
    schedule = WeightSchedule(warmup_steps=2, start=0.1, decay="cosine", decay_from=0.3, end=0.4)
    assert [schedule.factor(s, 9) for s in range(9)] == [weight_factor(s, 9, 2, 0.1, "cosine", 0.3, 0.4) for s in range(9)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1}, r"schedule\.warmup_steps: expected a number of steps >= 0, found -1"),
        ({"warmup_steps": 0.5}, r"warmup_steps.*found 0\.5"),
        ({"warmup_steps": "many"}, r"warmup_steps.*found 'many'"),
        ({"warmup_steps": 5, "start": -0.1}, r"schedule\.start: expected a factor >= 0, found -0\.1"),
        ({"decay": "linear", "end": float("nan")}, r"schedule\.end: expected a factor >= 0, found nan"),
        ({"decay": "step"}, r"schedule\.decay: expected one of none, linear, cosine, found 'step'"),
        (
            {"decay": "linear", "decay_from": 1.0},
            r"schedule\.decay_from: expected a fraction of the run in \[0, 1\), found 1\.0",
        ),
        ({"warmup_steps": 5, "end": 0.1}, r"schedule\.decay: expected linear or cosine where"),
        ({}, r"schedule: expected warmup_steps > 0 or a decay"),
        ({"start": 0.5}, r"schedule: expected warmup_steps > 0 or a decay"),
        (
            {"decay": "linear", "start": 0.5},
            r"schedule\.start: expected warmup_steps > 0 where start is given, found start=0\.5",
        ),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WeightSchedule(**settings)
