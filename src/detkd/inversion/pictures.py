"""Pictures of the images in work, with their boxes, at intervals."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid

from detkd.disk import replace_file
from detkd.inversion.image import quantise
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Work
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


def log_picture(loggers: Sequence[Logger], key: str, picture: Tensor, caption: str, step: int | None = None) -> None:
    """Give a uint8 (3, h, w) picture to the loggers that take pictures: Weights & Biases and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture.permute(1, 2, 0).cpu().numpy()], caption=[caption])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"{key}/{caption}", picture.cpu().numpy(), step)


class PictureCallback(lightning.Callback):
    """Write a grid of the images in work to ``folder`` and to the logger, and a filmstrip of each image when it is finished.

    Args:
        every: iterations between pictures; the last iteration of every batch is shown too. images: at most this many of a batch.
        batches: pictures are taken of the first few batches only, by whichever process makes them.
        side: of a film's frames in pixels. A film is ``folder``/steps/<shard>/<position>.png, the frames from left to right in time.
            A batch that was attempted again has none.
    """

    def __init__(self, folder: str | Path, every: int = 100, images: int = 32, batches: int = 2, side: int = 96) -> None:
        if every < 1:
            raise ValueError(f"expected every >= 1, got {every}")
        self.folder, self.every, self.images, self.batches, self.side = Path(folder), every, images, batches, side
        self._films: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: int, batch_idx: int
    ) -> None:
        work: Work | None = outputs["work"]
        if work is None or work.batch >= self.batches:
            return
        assert isinstance(module, InversionModule)
        finished = outputs["finished"]
        if finished is None and (work.iteration + 1) % self.every:
            return
        if finished is not None:
            images, targets = finished.images, finished.targets
        else:
            assert module.batch is not None
            images, targets = quantise(module.current_images()[0]).cpu(), module.batch.targets
        picture = picture_grid(images[: self.images], targets[: self.images], module.teacher.spec.classes)
        attempt = f"_attempt{work.attempt}" if work.attempt else ""
        name = f"batch{work.batch:04d}{attempt}_stage{work.stage}_{work.iteration + 1:05d}"
        save_picture(picture, self.folder / f"{name}.png")
        log_picture(trainer.loggers, "images", picture, name, trainer.global_step)
        self._films.append(_small(images, self.side))
        if finished is not None:
            films, self._films = self._films, []
            if work.attempt == 0:
                for position, film in enumerate(torch.cat(films, dim=-1)):
                    save_picture(film, self.folder / "steps" / f"{work.batch:06d}" / f"{position:06d}.png")


def _small(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) uint8 to (B, 3, side, w) of the same shape."""
    height, width = images.shape[-2:]
    size = (side, max(1, round(width * side / height)))
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True).round().to(torch.uint8)
