"""Does a prior that needs no stored statistics help? Inversions with bn_stats left out, with and without the term small_copy.

coco: yolo_fastest_xl without its statistics stands in for a teacher that has none (SSD300-VGG16); yolo_fastest judges the images.
scenes: the built-in teacher, which has no second detector: how much of it survives a flip, a reduction and noise.
The boxes are the same in every run of a bed, as layout.seed is.

    OMP_NUM_THREADS=1 python benchmarks/prior.py coco --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/prior.py scenes --seeds 0 1 2

A run whose results.json is there is scored, not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detkd.assets import builtin
from detkd.data.coco import CocoDataset
from detkd.detectors.darknet.detector import from_cfg
from detkd.detectors.files import File
from detkd.detectors.pretrained import pretrained
from detkd.detectors.protocol import Detector
from detkd.evaluation.coco import ap50, detect_images
from detkd.inversion.quality import best_matches
from detkd.structures import Target

LOSSES = {
    "detection, tv": "loss=[detection,tv]",
    "detection, tv, small_copy": "loss=[detection,tv,small_copy]",
    "detection, tv, small_copy (full canvas)": "loss=[detection,tv,small_copy] loss.small_copy.canvas=full",
    "detection, tv, bn_stats": "loss=[detection,bn_stats,tv]",
}
BEDS = {
    "coco": "+experiment=yolo_coco n_images=32 batch_size=16 stages.1=null stages.0.optimizer.weight_decay=0 stages.0.final_lr=0 augmentation=diode image.levels=5 loss.tv.weight=2 resolution=160 iterations=200 stages.0.optimizer.lr=0.03 stages.0.optimizer.betas=[0.9,0.99]",
    "scenes": "+experiment=scenes_invert n_images=64 batch_size=64 iterations=150 stages.0.optimizer.lr=0.025 stages.0.optimizer.betas=[0.9,0.9]",
}
ALWAYS = "callbacks=none logger=none trainer.accelerator=cpu"
Images = tuple[Tensor, list[Target]]  # uint8 (B, 3, H, W)


def stored(folder: Path, detector: Detector) -> Images:
    """The images of a set as stored, and their boxes."""
    sizes = json.loads((folder / "instances.json").read_text())["images"][0]
    data = CocoDataset(
        folder, "instances.json", classes=detector.spec.classes, image_size=(sizes["height"], sizes["width"]), resize="stretch"
    )
    samples = [data[i] for i in range(len(data))]
    return torch.stack([s["image"] for s in samples]), [s["target"] for s in samples if s["target"] is not None]


def flipped(images: Tensor, targets: Sequence[Target]) -> Images:
    width = images.shape[-1]
    edges = [t["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0]) for t in targets]
    return images.flip(-1), [{"boxes": b, "labels": t["labels"]} for b, t in zip(edges, targets, strict=True)]


def smaller(images: Tensor, targets: Sequence[Target], scale: float = 0.8) -> Images:
    height, width = images.shape[-2:]
    size = round(scale * height), round(scale * width)
    reduced = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True).round()
    padded = F.pad(reduced, (0, width - size[1], 0, height - size[0]), value=114).to(torch.uint8)
    factor = torch.tensor([size[1] / width, size[0] / height] * 2)
    return padded, [{"boxes": t["boxes"] * factor, "labels": t["labels"]} for t in targets]


def noisy(images: Tensor, targets: Sequence[Target], std: float = 0.05) -> Images:
    draws = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * std * draws).round().clamp(0, 255).to(torch.uint8), list(targets)


VIEWS: dict[str, Callable[[Tensor, Sequence[Target]], Images]] = {
    "as stored": lambda images, targets: (images, list(targets)),
    "flip": flipped,
    "0.8 of the size": smaller,
    "noise 0.05": noisy,
}


def look(detector: Detector, images: Tensor, targets: Sequence[Target]) -> dict[str, float]:
    """AP50, and the mean over boxes of the best score of a detection of its class with IoU >= .5 (0 where there is none)."""
    found = detect_images(detector, list(images))
    scores = torch.cat([best_matches(d, t)[0] for d, t in zip(found, targets, strict=True)])
    return {"ap50": round(ap50(found, targets).value, 4), "score": round(float(scores.mean()), 4)}


def detectors(bed: str) -> dict[str, Detector]:
    """Who judges the images of a bed, by role."""
    if bed == "scenes":
        return {"teacher": builtin()}
    names = {"teacher": "yolo-fastest-1.1-xl", "verifier": "yolo-fastest-1.1"}
    return {
        role: pretrained(partial(from_cfg, File(f"{name}.cfg")), File("coco.names"), File(f"{name}.weights"))
        for role, name in names.items()
    }


def measure(folder: Path, judges: dict[str, Detector]) -> dict[str, Any]:
    """Every judge on every view of the stored images, and the seconds of the run."""
    images, targets = stored(folder, judges["teacher"])
    scores = {
        role: {name: look(judge, *view(images, targets)) for name, view in VIEWS.items()} for role, judge in judges.items()
    }
    return scores | {"seconds": round(json.loads((folder / "results.json").read_text())["seconds"], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bed", choices=BEDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--runs", type=Path, default=Path("runs/prior"), help="where the sets are made")
    parser.add_argument("--out", type=Path, default=None, help="the json; default: runs/prior/BED.json")
    args = parser.parse_args()
    judges, rows = detectors(args.bed), []
    for loss in args.losses:
        for seed in args.seeds:
            folder = args.runs / args.bed / "-".join(re.findall(r"\w+", loss)) / str(seed)
            command = [*BEDS[args.bed].split(), *LOSSES[loss].split(), f"seed={seed}", *ALWAYS.split()]
            if not (folder / "results.json").is_file():
                subprocess.run([sys.executable, "-m", "detkd.invert", *command, f"out={folder}"], check=True)
            rows.append({"loss": loss, "seed": seed, "command": " ".join(command)} | measure(folder, judges))
            print(json.dumps(rows[-1]), flush=True)
        mine = [row for row in rows if row["loss"] == loss]
        for role in judges:
            values = [row[role]["as stored"]["ap50"] for row in mine]
            print(f"{loss}: {role} AP50 {statistics.mean(values):.3f}, {min(values):.3f} to {max(values):.3f}", flush=True)
    result = {"bed": args.bed, "runs": rows, "torch": torch.__version__, "device": platform.machine()}
    out = args.out or args.runs / f"{args.bed}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
