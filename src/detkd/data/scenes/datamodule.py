"""The built-in world as training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from detkd.data.datamodule import DetectionDataModule
from detkd.data.scenes.dataset import ScenesDataset
from detkd.errors import InputError
from detkd.structures import Resize


def scenes_datamodule(
    train_images: int,
    train_seed: int = 1,
    variant: str = "main",
    *,
    val: Dataset[Any] | None = None,
    classes: Sequence[str],
    image_size: tuple[int, int],
    resize: Resize,
    batch_size: int,
    num_workers: int = 0,
    holdout: float = 0.0,
    length: int | None = None,
    cache: bool = True,
    seed: int = 0,
) -> DetectionDataModule:
    """Scenes drawn at ``image_size`` from ``train_seed``; the other arguments are those of :func:`~detkd.data.datamodule.folder_datamodule`.

    Raises InputError when ``classes`` are not those of the world.
    """
    train = ScenesDataset(train_images, train_seed, variant, image_size, cache)
    if tuple(classes) != train.classes:
        raise InputError(
            f"data=scenes: expected the classes {list(train.classes)} of the world {variant!r}, got {list(classes)}"
        )
    return DetectionDataModule(
        train, val, batch_size=batch_size, num_workers=num_workers, holdout=holdout, length=length, seed=seed
    )
