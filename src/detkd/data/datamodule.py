"""Loaders over detection data for training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from detkd.data.checks import OnProblem
from detkd.data.dataset import spread
from detkd.data.formats import Format, open_dataset
from detkd.data.loading import Collating, Loader, Reporting
from detkd.errors import InputError
from detkd.structures import Resize, Target


class Batch(NamedTuple):
    """What the loaders give: images (B, 3, H, W) uint8, a target an image or None for all, and the ids of the images."""

    images: Tensor
    targets: list[Target] | None
    image_ids: list[int]


def collate(samples: Sequence[Any]) -> Batch:
    """Stack samples {"image", "target", "image_id"} of one image size; other keys are left behind.

    Raises ValueError when some have a target and some have none.
    """
    targets = [sample["target"] for sample in samples]
    missing = sum(target is None for target in targets)
    if missing not in (0, len(targets)):
        raise ValueError(f"expected targets for all images of a batch or for none, got {missing} of {len(targets)} without")
    images = torch.stack([sample["image"] for sample in samples])  # (B, 3, H, W)
    return Batch(images, None if missing else targets, [int(sample["image_id"]) for sample in samples])


class DetectionDataModule(LightningDataModule):
    """Serve datasets to a Lightning trainer.

    Args:
        train, val: map-style datasets of samples {"image": (3, H, W) uint8, "target": Target or None, "image_id": int}.
        batch_size: images a process and step. Training drops the last, incomplete batch; where a process has fewer images than a
            batch, the batch shrinks to those, with a warning.
        num_workers: processes that load for each loader.
        holdout: fraction of ``train`` (rounded, at least one image) that is kept from training, and is the validation set where
            ``val`` is None. Which ones depends on ``seed`` alone. ``train`` must not repeat images then: use ``length``.
        length: cut or repeat what is left for training to this many samples.
        seed: of the hold-out and of the order; Lightning shuffles with the seed of ``seed_everything`` under DDP.

    Without ``val`` and ``holdout`` there is no validation loader. Raises InputError when the hold-out leaves nothing to train on.
    """

    def __init__(
        self,
        train: Dataset[Any],
        val: Dataset[Any] | None = None,
        *,
        batch_size: int,
        num_workers: int = 0,
        holdout: float = 0.0,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        kept, held_out = split(len(cast(Sized, train)), holdout, seed)
        order = [kept[i] for i in spread(len(kept), length)]
        self.train_set: Subset[Any] = Subset(train, order)
        self.val_set: Dataset[Any] | None = val if val is not None else (Subset(train, held_out) if held_out else None)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of one size."""
        processes = 1 if self.trainer is None else self.trainer.world_size
        share = -(-len(self.train_set) // processes)
        batch_size = min(self.batch_size, share)
        if batch_size < self.batch_size:
            warnings.warn(
                f"batch_size={self.batch_size}: a process has {share} images, so batches are of {batch_size}", stacklevel=2
            )
        order = torch.Generator().manual_seed(self.seed)
        return self._loader(self.train_set, batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Batches in order, the last one maybe smaller; an empty list without validation data."""
        return [] if self.val_set is None else self._loader(self.val_set, self.batch_size, shuffle=False, generator=None)

    def _loader(
        self, dataset: Dataset[Any], batch_size: int, shuffle: bool, generator: torch.Generator | None
    ) -> DataLoader[Any]:
        return Loader(
            Reporting(dataset),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=Collating(collate),
            generator=generator,
        )


def split(n: int, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Split ``n`` indices into those kept and those held out, each in order; the same for the same ``n``, fraction and seed.

    A holdout above 0 takes round(n holdout) indices, at least one. Raises InputError when nothing is kept.
    """
    if not 0 <= holdout < 1:
        raise InputError(f"holdout: expected a fraction from 0 to below 1, got {holdout}")
    count = max(1, round(n * holdout)) if holdout > 0 else 0
    if n - count < 1:
        raise InputError(f"holdout={holdout}: expected at least one image left to train on, but {count} of {n} are held out")
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(shuffled[count:]), sorted(shuffled[:count])


def folder_datamodule(
    root: str | Path,
    *,
    format: Format = "folder",
    annotations: str | None = None,
    split: str | Sequence[str] | None = None,
    difficult: bool = False,
    val: Dataset[Any] | None = None,
    classes: Sequence[str] | None,
    image_size: tuple[int, int],
    resize: Resize,
    batch_size: int,
    num_workers: int = 0,
    holdout: float = 0.0,
    length: int | None = None,
    cache: bool = True,
    seed: int = 0,
    proxy: bool = False,
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
) -> DetectionDataModule:
    """Open the folder of a data set as a :class:`DetectionDataModule`.

    The arguments are those of :func:`~detkd.data.formats.open_dataset` and :class:`DetectionDataModule`; InputError as there.
    """
    train = open_dataset(
        root,
        format,
        annotations=annotations,
        split=split,
        difficult=difficult,
        classes=classes,
        image_size=image_size,
        resize=resize,
        cache=cache,
        on_unknown=on_unknown,
        invalid_boxes=invalid_boxes,
        proxy=proxy,
    )
    return DetectionDataModule(
        train, val, batch_size=batch_size, num_workers=num_workers, holdout=holdout, length=length, seed=seed
    )
