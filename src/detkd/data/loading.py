"""A loader whose workers' messages come through as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from detkd.errors import InputError


class Reporting(Dataset[Any]):
    """A data set that hands an InputError out as a value, where a worker would wrap it and its traceback into another's message."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


class Collating:
    """A collate function that lets the first InputError among the samples through."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        met = [sample for sample in samples if isinstance(sample, InputError)]
        return met[0] if met else self.collate(samples)


class Loader(DataLoader[Any]):
    """Torch's loader that raises an InputError which a worker met in this process, as it was.

    dataset is a :class:`Reporting` one, collate_fn a :class:`Collating` one. All else is torch's, so that Lightning can make it again with
    another sampler.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _raising(super().__iter__())


def _raising(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch
