"""How many objects an image has: distributions over counts, four of them by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from detkd.errors import InputError

CountName = Literal["uniform", "random", "coco", "voc"]

# objects an image: number of images
_COCO = {
    1: 22, 2: 57, 3: 33, 4: 30, 5: 18, 6: 13, 7: 15, 8: 15, 9: 8, 10: 11, 11: 8, 12: 5, 13: 7,
    14: 6, 15: 6, 16: 4, 17: 6, 18: 4, 19: 1, 20: 4, 21: 2, 22: 1, 24: 4, 25: 9,
}  # fmt: skip
_VOC = {1: 30, 2: 34, 3: 13, 4: 8, 5: 1, 6: 7, 7: 3, 8: 2, 10: 2}


@dataclass(frozen=True, init=False)
class Counts:
    """A distribution over whole numbers from 1.

    Args:
        weights: how often each count is drawn, relative to the sum of all. A count of weight 0 is never drawn.

    ``values`` are the counts of positive weight, in order; ``probabilities`` belong to them and sum to 1.

    Raises InputError on counts that are not whole numbers from 1, on weights that are negative or not finite, and where no weight
    is positive.
    """

    values: tuple[int, ...]
    probabilities: tuple[float, ...]

    def __init__(self, weights: Mapping[int, float]) -> None:
        for count, weight in weights.items():
            if not _whole(count) or count < 1:
                raise InputError(f"counts: expected whole numbers of objects from 1, got {count!r}")
            if not _number(weight) or not 0 <= weight <= sys.float_info.max:
                raise InputError(f"counts: expected a finite weight from 0 for {count} objects, got {weight!r}")
        # the largest weight first becomes 1, so that the sum is finite
        largest = max(weights.values(), default=0)
        if not largest > 0:
            raise InputError(f"counts: expected at least one positive weight, got {dict(weights)}")
        scaled = {count: weight / largest for count, weight in sorted(weights.items()) if weight > 0}
        total = math.fsum(scaled.values())
        object.__setattr__(self, "values", tuple(scaled))
        object.__setattr__(self, "probabilities", tuple(weight / total for weight in scaled.values()))

    @classmethod
    def named(cls, name: CountName, most: int = 25) -> Counts:
        """One of the four distributions of DIODE's Table 4 (Chawla et al., WACV 2021), which names them without defining them.

        - uniform: every count from 1 to ``most`` is equally likely.
        - random: a square grid of side k uniform in 1 ... 5, of which a number uniform in 1 ... k*k is used. This reading is ours.
        - coco: counted in 289 COCO images that have objects (126 of train2017, 163 of val2017), crowd regions left out; 8 of them
          have more than 25 objects and are counted as 25. Mean 7.15, and 7.42 without that limit.
        - voc: counted in 100 Pascal VOC images, difficult objects included. Mean 2.73.

        For comparison, Liu et al. (IJCV 128, 2020, Table 3) count 896,782 objects in the 123,287 images of COCO train2017 and
        val2017, 7.27 an image, and 31,561 (difficult ones included) in the 11,540 of VOC 2012 trainval, 2.73 an image.

        A count above ``most`` is counted as ``most``. Raises InputError on other names and on ``most`` below 1.
        """
        if name not in get_args(CountName):
            raise InputError(f"counts: expected one of {', '.join(get_args(CountName))}, got {name!r}")
        if not _whole(most) or most < 1:
            raise InputError(f"counts: expected at least 1 as the largest count, got {most!r}")
        weights: Mapping[int, float]
        if name == "uniform":
            weights = dict.fromkeys(range(1, most + 1), 1)
        elif name == "random":
            weights = {count: sum(1 / k**2 for k in range(1, 6) if count <= k**2) for count in range(1, 26)}
        else:
            weights = _COCO if name == "coco" else _VOC
        cut: dict[int, float] = {}
        for count, weight in weights.items():
            cut[min(count, most)] = cut.get(min(count, most), 0) + weight
        return cls(cut)

    @property
    def mean(self) -> float:
        """Expected count."""
        return math.fsum(count * p for count, p in zip(self.values, self.probabilities))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) int64 counts on the CPU, from a CPU generator; uses ``n`` of its float64 uniform numbers, whatever the distribution."""
        chance = torch.rand(n, dtype=torch.float64, generator=generator)
        borders = torch.tensor(list(accumulate(self.probabilities)), dtype=torch.float64)
        # rounding may leave the last border below 1
        index = torch.searchsorted(borders, chance, right=True).clamp(max=len(self.values) - 1)
        return torch.tensor(self.values)[index]


def counts_from(value: object, most: int | None = None, key: str = "counts") -> Counts:
    """Read a distribution as a user writes it.

    Args:
        value: a name of :meth:`Counts.named`, a mapping {count: weight}, or [fewest, most], all between equally likely.
        most: largest count allowed. A named distribution is cut there (None: at 25); a mapping or range beyond it is an error.
        key: what error messages call the value.

    Raises InputError on everything else.
    """
    try:
        counts = _read(value, most)
    except InputError as error:
        raise InputError(f"{key}{str(error).removeprefix('counts')}") from None
    if most is not None and counts.values[-1] > most:
        raise InputError(f"{key}: expected counts of at most {most}, got {counts.values[-1]}")
    return counts


def _read(value: Any, most: int | None) -> Counts:
    if isinstance(value, str):
        names = get_args(CountName)
        if value not in names:
            raise InputError(f"counts: expected one of {', '.join(names)}, a mapping or [fewest, most], got {value!r}")
        return Counts.named(value, 25 if most is None else most)  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return Counts(value)
    if isinstance(value, Sequence) and len(value) == 2 and all(_whole(v) for v in value):
        fewest, largest = value
        if not 1 <= fewest <= largest:
            raise InputError(f"counts: expected [fewest, most] with 1 <= fewest <= most, got {list(value)}")
        # a typing error must not fill the memory
        if largest > 100_000:
            raise InputError(f"counts: expected counts of at most 100000, got {largest}")
        return Counts(dict.fromkeys(range(fewest, largest + 1), 1))
    raise InputError(
        f"counts: expected a name ({', '.join(get_args(CountName))}), a mapping {{count: weight}} or [fewest, most], got {value!r}"
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
