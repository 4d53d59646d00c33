"""Inverted images of the three worlds by the first recipe of detkd and by that of now, for the same boxes, as one picture.

The first is that of 2026-11-21: Adam with momentum in all; for blood cells and COCO a pyramid of all maps
alike, DIODE's five augmentations, total variation 2, one stage. The built-in world
and COCO need nothing; blood cells need the detectors of docs/guides/evidence.md.

    python benchmarks/sheet.py --out sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from torch import Tensor

from detkd.inversion.batches import MemoryBatches
from detkd.inversion.pictures import picture_grid
from detkd.runtime import build, plotting
from detkd.runtime.run import config_dir, quiet

FIRST = ["augmentation=diode", "image.levels=5", "image.falloff=1", "loss.detection.weight=1", "loss.tv.weight=2"]
MOMENTUM = ["stages.0.optimizer.lr=0.03", "stages.0.optimizer.betas=[0.9,0.99]"]
# By world: its experiment, images in a batch (those shown are the first of it), and its first recipe.
WORLDS: dict[str, tuple[str, int, list[str]]] = {
    "built-in scenes": ("scenes_invert", 64, ["stages.0.optimizer.lr=0.025", "stages.0.optimizer.betas=[0.9,0.9]"]),
    "blood cells": ("bccd_invert", 20, FIRST),
    "COCO": (
        "yolo_coco",
        16,
        [
            *FIRST,
            "stages.0.resolution=160",
            "stages.0.iterations=400",
            "stages.0.final_lr=0",
            "stages.1=null",
            "stages.0.optimizer.weight_decay=0",
            *MOMENTUM,
        ],
    ),
}
COLUMNS = 8


def row(experiment: str, batch: int, overrides: list[str]) -> Tensor:
    """The first images of one batch with their boxes, uint8 (3, h, w)."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings = [f"+experiment={experiment}", f"n_images={batch}", f"batch_size={batch}", "verifier=none", "compile=false"]
        cfg = compose("invert", [*settings, *overrides])
    teacher = build.required(build.build_detector(cfg.teacher, "teacher"), "teacher")
    module = build.build_inversion(cfg, teacher, None)
    batches = MemoryBatches(1)
    module.batches = batches
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, **silent).fit(module)  # type: ignore[arg-type]
    images, targets = batches.read(0)
    return picture_grid(images[:COLUMNS], targets[:COLUMNS], teacher.spec.classes, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/latest-sheet.png"))
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quiet()
    rows = []
    for world in args.worlds:
        experiment, batch, first = WORLDS[world]
        rows += [(f"{world}, first", row(experiment, batch, first)), (f"{world}, now", row(experiment, batch, []))]
        print(world, flush=True)
    figure = Figure(figsize=(13, 1.85 * len(rows)), layout="constrained")
    for number, (title, picture) in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, number + 1)
        axes.imshow(picture.permute(1, 2, 0).numpy())
        axes.set_title(title, loc="left", fontsize=10)
        axes.axis("off")
    plotting.save(figure, args.out)


if __name__ == "__main__":
    main()
