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
    proxy: bool = False,
) -> DetectionDataModule:
    """Scenes drawn at ``image_size`` from ``train_seed``; the other arguments are those of :func:`~detkd.data.datamodule.folder_datamodule`.

    proxy: only the images matter, so scenes of other classes are taken without their boxes. Else such ``classes`` are an InputError.
    """
    scenes = ScenesDataset(train_images, train_seed, variant, image_size, cache)
    train: Dataset[Any] = scenes
    if tuple(classes) != scenes.classes:
        if not proxy:
            raise InputError(
                f"data=scenes: expected the classes {list(scenes.classes)} of the world {variant!r}, got {list(classes)}; "
                "labels=teacher takes the images alone"
            )
        train = _WithoutBoxes(scenes)
    return DetectionDataModule(
        train, val, batch_size=batch_size, num_workers=num_workers, holdout=holdout, length=length, seed=seed
    )


class _WithoutBoxes(Dataset[dict[str, Any]]):
    """The images of scenes, with None for targets."""

    def __init__(self, scenes: ScenesDataset) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.scenes[index], "target": None}
