from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detkd.data.counts import Counts, counts_from
from detkd.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_dict(counts: Counts) -> dict[int, float]:
    return dict(zip(counts.values, counts.probabilities))


def test_weights_are_relative_and_their_order_does_not_matter() -> None:
    assert as_dict(Counts({3: 2, 1: 6, 2: 0})) == pytest.approx({1: 0.75, 3: 0.25})
    assert Counts({3: 2, 1: 6, 2: 0}) == Counts({1: 3, 3: 1})
    assert Counts({1: 3, 3: 1}).mean == pytest.approx(1.5)


@pytest.mark.parametrize(("name", "mean"), [("uniform", 13.0), ("random", 6.0), ("coco", 2065 / 289), ("voc", 2.73)])
def test_named_means(name: Any, mean: float) -> None:
    counts = Counts.named(name)
    assert counts.mean == pytest.approx(mean)
    assert 1 <= counts.values[0] <= counts.values[-1] <= 25
    assert sum(counts.probabilities) == pytest.approx(1)


def test_random_is_a_grid_side_and_then_a_part_of_the_grid() -> None:
    probabilities = as_dict(Counts.named("random"))
    assert probabilities[1] == pytest.approx((1 + 1 / 4 + 1 / 9 + 1 / 16 + 1 / 25) / 5)
    assert probabilities[9] == pytest.approx((1 / 9 + 1 / 16 + 1 / 25) / 5)
    assert probabilities[25] == pytest.approx(1 / 125)


def test_a_count_above_the_most_is_counted_as_the_most() -> None:
    assert as_dict(Counts.named("voc", most=3)) == pytest.approx({1: 0.30, 2: 0.34, 3: 0.36})
    assert Counts.named("coco", most=1) == Counts({1: 1})
    assert Counts.named("uniform", most=4) == Counts({1: 1, 2: 1, 3: 1, 4: 1})
    assert Counts.named("uniform", most=30).values[-1] == 30


def test_draws_follow_the_distribution_and_the_seed() -> None:
    counts = Counts.named("voc")
    drawn = counts.draw(20_000, generator())
    assert drawn.shape == (20_000,)
    assert drawn.dtype == torch.int64
    shares = [(drawn == value).float().mean().item() for value in counts.values]
    assert shares == pytest.approx(list(counts.probabilities), abs=0.012)  # 3.7 standard deviations of the largest
    assert torch.equal(drawn, counts.draw(20_000, generator()))
    assert not torch.equal(drawn, counts.draw(20_000, generator(1)))
    assert counts.draw(0, generator()).shape == (0,)


def test_a_draw_uses_as_many_numbers_whatever_the_distribution() -> None:
    left = []
    for counts in (Counts({4: 1}), Counts.named("coco")):
        chance = generator()
        counts.draw(7, chance)
        left.append(torch.rand(1, generator=chance))
    assert torch.equal(*left)


@given(
    st.dictionaries(st.integers(1, 40), st.floats(0, 1e308), min_size=1).filter(lambda w: max(w.values()) > 0),
    st.integers(0, 99),
)
def test_only_counts_of_positive_weight_are_drawn(weights: dict[int, float], seed: int) -> None:
    counts = Counts(weights)
    assert set(counts.draw(50, generator(seed)).tolist()) <= {count for count, weight in weights.items() if weight > 0}
    assert min(weights) <= counts.mean <= max(weights) * (1 + 1e-9)


def test_counts_are_read_as_a_user_writes_them() -> None:
    assert counts_from("coco") == Counts.named("coco")
    assert counts_from("coco", most=9) == Counts.named("coco", 9)
    assert counts_from({1: 1, 4: 3}) == Counts({1: 1, 4: 3})
    assert counts_from([2, 4]) == counts_from((2, 4)) == Counts({2: 1, 3: 1, 4: 1})
    assert counts_from([30, 30]) == Counts({30: 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("imagenet", "expected one of uniform, random, coco, voc"),
        ([3, 2], "fewest <= most"),
        ([0, 2], "1 <= fewest"),
        ([1, 10**9], "at most 100000"),
        ([1, 2, 3], "expected a name"),
        ([1.0, 2.0], "expected a name"),
        ([True, 2], "expected a name"),
        (3, "expected a name"),
        (None, "expected a name"),
        ({}, "at least one positive weight"),
        ({1: 0, 2: 0.0}, "at least one positive weight"),
        ({0: 1}, "whole numbers of objects from 1, got 0"),
        ({"1": 1}, "whole numbers of objects from 1, got '1'"),
        ({1.5: 1}, "whole numbers of objects from 1"),
        ({True: 1}, "whole numbers of objects from 1"),
        ({1: -0.5}, "finite weight from 0 for 1 objects, got -0.5"),
        ({1: float("nan")}, "finite weight"),
        ({1: float("inf")}, "finite weight"),
        ({1: 10**400}, "finite weight"),
        ({1: "2"}, "finite weight"),
        ({1: True}, "finite weight"),
    ],
)
def test_what_cannot_be_a_distribution_is_refused(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        counts_from(value, key="layout.counts")
    assert str(error.value).startswith("layout.counts: ")


@pytest.mark.parametrize("value", [[1, 26], {26: 1}])
def test_a_count_beyond_the_largest_allowed_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="counts of at most 25, got 26"):
        counts_from(value, most=25)


def test_other_names_and_limits_are_refused() -> None:
    with pytest.raises(InputError, match="expected one of uniform"):
        Counts.named("x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1 as the largest count, got 0"):
        Counts.named("coco", most=0)
