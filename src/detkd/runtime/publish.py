"""What a run logs at its end: its scores as a table, what its student sees, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig
from torch import Tensor

from detkd.data.dataset import spread
from detkd.detectors.protocol import Detector
from detkd.evaluation.coco import detect_images
from detkd.inversion.pictures import log_picture, picture_grid
from detkd.runtime.data import open_labelled
from detkd.runtime.report.build import make_report
from detkd.runtime.report.write import write_report
from detkd.structures import Target

PICTURES, THRESHOLD = 8, 0.3  # images with a student's detections, and their least score
REPORT = "report"  # the folder of a run's own


def publish(loggers: Sequence[Logger], folder: Path, results: Mapping[str, Any]) -> None:
    """Log the plain numbers of results.json as a table, and the report of the run as an artifact; nothing without Weights & Biases.

    The report is written to report/ in the run's folder.
    """
    online = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if not online:
        return
    import wandb

    numbers = {k: v for k, v in results.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    page = write_report(make_report([folder], title=folder.name), folder / REPORT)
    for logger in online:
        logger.log_table("results", columns=["name", "value"], data=[[name, float(value)] for name, value in numbers.items()])
        artifact = wandb.Artifact(f"report-{logger.experiment.id}", type="report")
        artifact.add_dir(str(page.parent))
        logger.experiment.log_artifact(artifact)


def publish_student(loggers: Sequence[Logger], cfg: DictConfig, student: Detector) -> None:
    """Log a picture of what a student finds in images of ``val.root``; nothing without that or a logger of pictures."""
    shown = [logger for logger in loggers if isinstance(logger, (WandbLogger, TensorBoardLogger))]
    if shown and cfg.val.root is not None:
        log_picture(shown, "student", student_picture(cfg, student), f"score above {THRESHOLD} on {cfg.val.root}")


def student_picture(cfg: DictConfig, student: Detector) -> Tensor:
    """Images of ``val.root``, evenly spaced and at the student's size, with what it finds there: uint8 (3, h, w)."""
    dataset = open_labelled(cfg.val, student.spec)
    chosen = spread(len(dataset), min(PICTURES, len(dataset)))
    images = [dataset[i]["image"] for i in chosen]
    device = str(next(student.parameters()).device)
    found: list[Target] = []
    for detection in detect_images(student, images, device=device):
        sure = detection["scores"] > THRESHOLD
        found.append({"boxes": detection["boxes"][sure], "labels": detection["labels"][sure]})
    return picture_grid(torch.stack(images), found, student.spec.classes, columns=4)
