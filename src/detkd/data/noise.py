"""Images of pure noise: the control of every data-free result, a data set that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkd.data.datamodule import DetectionDataModule
from detkd.errors import InputError
from detkd.structures import Resize


class NoiseDataset(Dataset[dict[str, object]]):
    """``length`` images whose pixels are independent N(mean, std) clamped to [0, 1], without targets.

    Each image is a function of (seed, index). image_size: (height, width) in pixels.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        image_size: tuple[int, int] = (96, 96),
        mean: float = 0.5,
        std: float = 0.25,
    ) -> None:
        if length < 1:
            raise InputError(f"noise: expected at least one image, got {length}")
        self.length, self.seed, self.image_size, self.mean, self.std = length, seed, image_size, mean, std

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, object]:
        if not 0 <= index < self.length:
            raise IndexError(f"image {index} of {self.length}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        noise: Tensor = torch.randn(3, *self.image_size, generator=generator) * self.std + self.mean
        return {"image": (noise.clamp(0, 1) * 255).round().to(torch.uint8), "target": None, "image_id": index}


def noise_datamodule(
    images: int,
    noise_seed: int = 0,
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
    """Noise at ``image_size`` as training data; the other arguments are those of :func:`~detkd.data.datamodule.folder_datamodule`."""
    train = NoiseDataset(images, noise_seed, image_size)
    return DetectionDataModule(
        train, val, batch_size=batch_size, num_workers=num_workers, holdout=holdout, length=length, seed=seed
    )
