from __future__ import annotations

from itertools import pairwise

import pytest

from detkd.distillation.schedule import warmup_cosine


def test_known_values() -> None:
    values = [warmup_cosine(step, 13, 3, 0.1) for step in range(15)]
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[8] == pytest.approx(0.55), "half way down"
    assert values[13] == values[14] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(values[3:14]))


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert warmup_cosine(0, 10, 0, 0.05) == 1
    assert warmup_cosine(0, 1, 0, 0.05) == 1
