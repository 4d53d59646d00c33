"""Small runs of the inversion module, for the tests of what it makes and of what it leaves on disk."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor

from detkd.inversion.augment import Compose, Flip, Jitter
from detkd.inversion.batches import Finished
from detkd.inversion.image import ImageFactory, PyramidFactory
from detkd.inversion.layout import UniformBoxes
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Stage
from detkd.losses.bn_stats import BatchNormStatistics
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.losses.tv import TotalVariation

ADAM = partial(torch.optim.Adam, lr=0.05)


class Keep(lightning.Callback):
    """Collect finished batches, and the total loss of every step."""

    def __init__(self) -> None:
        self.finished: dict[int, Finished] = {}
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: int, batch_idx: int
    ) -> None:
        if outputs["work"] is not None:
            self.losses.append(float(outputs["loss"]))
        if outputs["finished"] is not None:
            self.finished[outputs["work"].batch] = outputs["finished"]


def stage(resolution: int = 32, iterations: int = 6, **options: Any) -> Stage:
    return Stage((resolution, resolution), iterations, ADAM, **options)


def terms() -> Composite:
    return Composite(
        {"detection": DetectionLoss(), "bn_stats": BatchNormStatistics(), "tv": TotalVariation("clean")},
        {"detection": 1.0, "bn_stats": 1.0, "tv": 0.1},
    )


def make(teacher: Any, stages: Sequence[Stage] | None = None, loss: Composite | None = None, **options: Any) -> InversionModule:
    image: ImageFactory = options.pop("image", PyramidFactory(levels=3))
    augmentation = options.pop("augmentation", Compose([Jitter(), Flip()]))
    arguments = {"n_images": 5, "batch_size": 2, "look_every": 2, "check_every": 1, **options}
    return InversionModule(
        copy.deepcopy(teacher), image, loss or terms(), UniformBoxes(), augmentation, stages or [stage()], **arguments
    )


def fit(module: InversionModule, *callbacks: lightning.Callback) -> Keep:
    keep = Keep()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[keep, *callbacks], **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module)
    return keep


def same(a: Finished, b: Finished) -> bool:
    boxes = all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(a.targets, b.targets, strict=True))
    return boxes and torch.equal(a.images, b.images) and a.records == b.records and a.trace == b.trace


def losses(finished: Finished) -> Tensor:
    """(B,) what the records say."""
    return torch.tensor([record["loss"] for record in finished.records])
