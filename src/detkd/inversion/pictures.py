"""Pictures of the images in work, with their boxes, at intervals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid

from detkd.disk import replace_file
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Work
from detkd.inversion.writer import quantise
from detkd.structures import Target


def picture_grid(
    images: Tensor, targets: Sequence[Target], classes: Sequence[str], columns: int = 8, side: int = 160
) -> Tensor:
    """Lay out images with their boxes and class names.

    images: (B, 3, H, W) uint8. side: shown longer side in pixels; smaller images are enlarged by whole factors. Returns uint8 (3, h, w).
    """
    factor = max(1, round(side / max(images.shape[-2:])))
    drawn = []
    for image, target in zip(images.cpu(), targets, strict=True):
        large = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        drawn.append(_with_boxes(large, target["boxes"].cpu() * factor, [classes[int(i)] for i in target["labels"]]))
    return make_grid(torch.stack(drawn), nrow=min(columns, len(drawn)), padding=2)


def _with_boxes(image: Tensor, boxes_xyxy: Tensor, names: Sequence[str]) -> Tensor:
    """Draw boxes, each with its name on a dark ground above it or, at the top edge, inside it."""
    picture = PilImage.fromarray(image.permute(1, 2, 0).numpy())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for (left, top, right, bottom), name in zip(boxes_xyxy.tolist(), names, strict=True):
        if right <= left or bottom <= top:
            continue
        draw.rectangle((left, top, right - 1, bottom - 1), outline="yellow")
        x0, y0, x1, y1 = draw.textbbox((0, 0), name, font=font)
        x = max(0.0, min(left, picture.width - (x1 - x0) - 3))
        y = top - (y1 - y0) - 4 if top > y1 - y0 + 4 else top + 1
        draw.rectangle((x, y, x + x1 - x0 + 3, y + y1 - y0 + 3), fill="black")
        draw.text((x + 2 - x0, y + 2 - y0), name, fill="yellow", font=font)
    return pil_to_tensor(picture)


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a uint8 (3, h, w) picture as PNG, whole or not at all."""
    buffer = io.BytesIO()
    PilImage.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(buffer, format="PNG")
    replace_file(path, buffer.getvalue())


class PictureCallback(lightning.Callback):
    """Write a grid of the images in work to ``folder`` and to the logger.

    Args:
        every: iterations between pictures; the last iteration of every batch is shown too. images: at most this many of a batch.
        batches: pictures are taken of the first few batches only, by the first process.
    """

    def __init__(self, folder: str | Path, every: int = 100, images: int = 32, batches: int = 2) -> None:
        if every < 1:
            raise ValueError(f"expected every >= 1, got {every}")
        self.folder, self.every, self.images, self.batches = Path(folder), every, images, batches

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Work, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or batch.batch >= self.batches:
            return
        assert isinstance(module, InversionModule)
        finished = outputs["finished"]
        if finished is None and (batch.iteration + 1) % self.every:
            return
        images, targets = (finished.images, finished.targets) if finished else module.current_images()
        picture = picture_grid(quantise(images[: self.images]), targets[: self.images], module.teacher.spec.classes)
        name = f"batch{batch.batch:04d}_stage{batch.stage}_{batch.iteration + 1:05d}"
        save_picture(picture, self.folder / f"{name}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("images", [picture.permute(1, 2, 0).cpu().numpy()], caption=[name])
