"""Write finished batches into the store, with the teacher's judgement of each image as stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from detkd.boxes import iou_xyxy
from detkd.data.store import StoreWriter
from detkd.detectors.modes import looking
from detkd.inversion.module import Finished, InversionModule
from detkd.structures import Detection, Target


def quantise(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def judge(detections: Sequence[Detection], targets: Sequence[Target]) -> list[dict[str, float]]:
    """How well each image shows its targets, the mean over its boxes of two numbers.

    teacher_score: the best score of a detection of the box's class with IoU >= .5, else 0. teacher_iou: the best IoU of a
    detection of the box's class, else 0.
    """
    records = []
    for detection, target in zip(detections, targets, strict=True):
        same = target["labels"][:, None] == detection["labels"][None]  # (n, m)
        iou = iou_xyxy(target["boxes"], detection["boxes"]) * same
        score = detection["scores"][None] * (iou >= 0.5)
        best_iou = iou.max(1).values if iou.shape[1] else iou.new_zeros(len(iou))
        best_score = score.max(1).values if score.shape[1] else score.new_zeros(len(score))
        records.append({"teacher_score": _rounded(best_score), "teacher_iou": _rounded(best_iou)})
    return records


def _rounded(values: Tensor) -> float:
    return round(float(values.mean()), 4) if len(values) else 0.0


class StoreCallback(lightning.Callback):
    """Write each finished batch as a shard, and the whole set once all processes are done."""

    def __init__(self, writer: StoreWriter, n_shards: int) -> None:
        self.writer, self.n_shards = writer, n_shards

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        finished: Finished | None = outputs["finished"]
        if finished is None:
            return
        assert isinstance(module, InversionModule)
        images = quantise(finished.images)
        with looking(module.teacher), torch.autocast(module.device.type, enabled=False):
            detections = module.teacher.decode(module.teacher(images.to(module.device).float() / 255))
        moved: list[Detection] = [
            {"boxes": d["boxes"].cpu(), "labels": d["labels"].cpu(), "scores": d["scores"].cpu()} for d in detections
        ]
        records = [
            record | {"loss": round(loss, 4)} for record, loss in zip(judge(moved, finished.targets), finished.loss.tolist())
        ]
        self.writer.write_shard(finished.index, images, finished.targets, records)

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception):
            self.writer.withdraw()

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        trainer.strategy.barrier("store")
        if trainer.is_global_zero and not trainer.interrupted:
            self.writer.finish(self.n_shards)
        trainer.strategy.barrier("finished")
