from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from detkd.errors import InputError
from detkd.inversion.stage import Stage, seed_of

ADAM = partial(torch.optim.Adam, lr=0.1)


def stage(iterations: int = 4, **options: Any) -> Stage:
    return Stage((8, 8), iterations, ADAM, **options)


def test_cosine_from_one_to_the_final_fraction() -> None:
    assert stage().lr_factor(0) == 1
    assert stage().lr_factor(2) == pytest.approx(0.5)
    assert stage().lr_factor(4) == pytest.approx(0)
    assert stage(final_lr=0.25).lr_factor(2) == pytest.approx(0.625)
    assert stage(final_lr=1.0).lr_factor(3) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(((0, 8), 1, ADAM), r"stages\.resolution.*\(0, 8\)"), (((8, 8), 0, ADAM), r"stages\.iterations.*got 0")],
)
def test_values_out_of_range_are_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Stage(*arguments)


def test_a_shortened_stage_keeps_the_rest() -> None:
    short = stage(9, final_lr=0.5).shortened(0.5)
    assert (short.iterations, short.final_lr, short.resolution) == (4, 0.5, (8, 8))
    assert stage(3).shortened(0.01).iterations == 1


def test_seeds_are_fixed_numbers_and_differ_by_every_key() -> None:
    assert seed_of("images", 0, 0) == 1686640530785695588
    seeds = [seed_of(name, seed, batch) for name in ("images", "layout") for seed in range(8) for batch in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("a", 1, 23) != seed_of("a", 12, 3)
