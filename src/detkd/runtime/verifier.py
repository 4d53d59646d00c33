"""A verifier at work while images are made: a second detector that looks on and takes no part in the loss."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from detkd.classes import label_map
from detkd.detectors.protocol import Detector
from detkd.evaluation.coco import ap50
from detkd.inversion.batches import Finished
from detkd.inversion.image import quantise
from detkd.inversion.module import InversionModule
from detkd.inversion.quality import detections_of
from detkd.inversion.stage import Work
from detkd.structures import Target


class VerifierCallback(lightning.Callback):
    """Log the verifier's AP50 on the images in work, rounded to 8 bit, as "verifier/ap50".

    Args:
        verifier: knows the teacher's classes, by name. every: iterations between looks.

    Raises InputError where the verifier lacks a class of the teacher.
    """

    def __init__(self, verifier: Detector, every: int) -> None:
        self.verifier, self.every = verifier, every

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, InversionModule)
        names = pl_module.teacher.spec.classes
        self._labels = torch.tensor(label_map(names, self.verifier.spec.classes, "verifier"))
        self.verifier.to(trainer.strategy.root_device)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: int, batch_idx: int
    ) -> None:
        work: Work | None = outputs["work"]
        assert isinstance(module, InversionModule)
        if work is None or (work.iteration + 1) % self.every:
            return
        finished: Finished | None = outputs["finished"]
        if finished is None:
            shown, targets = module.current_images()
            images = quantise(shown)
        else:
            images, targets = finished.images.to(module.device), finished.targets
        named: list[Target] = [{"boxes": t["boxes"].cpu(), "labels": self._labels[t["labels"].cpu()]} for t in targets]
        scores = ap50(detections_of(self.verifier, images.float() / 255), named)
        module.log("verifier/ap50", scores.value, prog_bar=True)
