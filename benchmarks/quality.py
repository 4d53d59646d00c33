"""How good inverted images are after how many seconds: verifier AP50 over time, for the official schedule and for ours.

All methods invert yolo_fastest_xl at 160 px, 32 images in batches of 16, the same boxes; yolo_fastest looks at the images in work, rounded
to 8 bit, at some iterations, and at the finished ones. Each run is a line of OUT.jsonl; runs that are there are not made again. At the end
OUT.png and OUT.md.

A shared machine is never equally fast for an hour, so seconds are not those of the runs: what a step of each stage costs is measured in
pairs with the bare forward and backward of the network (benchmarks/bench.py), the median ratio of them, at the end of every call; seconds
are steps x ratio x the median bare step of all pairs, none of them compiled; long runs are (compile=auto), to be done sooner.

    python benchmarks/quality.py --out benchmarks/quality [--seeds 0 1 2] [--methods official_kl spine default]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning
import torch
from bench import WARM_UP, Pairs, bare_inversion
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from detkd.detectors.protocol import Detector
from detkd.evaluation.coco import ap50
from detkd.inversion.image import quantise
from detkd.inversion.module import InversionModule
from detkd.inversion.quality import detections_of
from detkd.runtime import build, plotting
from detkd.runtime.run import config_dir, quiet
from detkd.structures import Detection, Target

ALWAYS = ["+experiment=yolo_coco", "n_images=32", "batch_size=16"]
ONE_STAGE = [
    "stages.0.resolution=160",
    "stages.0.final_lr=0",
    "stages.0.optimizer.weight_decay=0",
    "stages.1=null",
    "augmentation=diode",
]
OFFICIAL = [
    *ONE_STAGE,
    *("image=pixels", "stages.0.iterations=2500", "stages.0.optimizer.lr=0.2", "stages.0.optimizer.betas=[0.0,0.0]"),
    *("loss.detection.weight=0.5", "loss.tv.weight=75", "loss.tv.of=augmented"),
]
METHODS: dict[str, tuple[str, list[str], tuple[int, ...]]] = {
    "official_l2": (
        "official optimiser and schedule, R_BN as in equation 5",
        [*OFFICIAL, "loss.bn_stats.form=l2", "loss.bn_stats.weight=0.1"],
        (100, 250, 500, 1000, 1500, 2000),
    ),
    "official_kl": (
        "official optimiser and schedule, R_BN scale-free",
        [*OFFICIAL, "loss.bn_stats.form=kl"],
        (100, 250, 500, 1000, 1500, 2000),
    ),
    "spine": (
        "pyramid, Adam with momentum, 400 iterations",
        [
            *(*ONE_STAGE, "stages.0.iterations=400", "stages.0.optimizer.lr=0.03", "stages.0.optimizer.betas=[0.9,0.99]"),
            *("image.levels=5", "loss.tv.weight=2"),
        ],
        (25, 50, 100, 150, 200, 300),
    ),
    "default": ("yolo_coco as it is", [], (25, 50, 75, 100, 125, 150, 175, 200)),
}


class Watch(lightning.Callback):
    """Keep the images of each batch at some iterations, counted over all stages.

    kept: by iteration, of each batch its images (B, 3, H, W) uint8 and its targets.
    """

    def __init__(self, marks: tuple[int, ...]) -> None:
        self.marks = marks
        self.kept: dict[int, list[tuple[Tensor, list[Target]]]] = defaultdict(list)
        self._iterations = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        if outputs["work"] is None:
            return
        finished = outputs["finished"]
        self._iterations += 1
        if finished is not None:
            self.kept[self._iterations].append((finished.images, finished.targets))
            self._iterations = 0
        elif self._iterations in self.marks:
            images, targets = module.current_images()
            self.kept[self._iterations].append((quantise(images), targets))


def seen(verifier: Detector, images: Tensor, targets: list[Target], side: int) -> tuple[list[Detection], list[Target]]:
    """What the verifier finds in images brought to ``side`` pixels, and the boxes there."""
    factor = side / images.shape[-1]
    shown = F.interpolate(images.float() / 255, size=(side, side), mode="bilinear", align_corners=False)
    return detections_of(verifier, shown), [{"boxes": t["boxes"] * factor, "labels": t["labels"]} for t in targets]


def inversion(method: str, *overrides: str) -> tuple[InversionModule, Detector, Detector]:
    """The module of a method, its teacher and the verifier."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("invert", [*ALWAYS, *METHODS[method][1], *overrides])
    teacher = build.required(build.build_detector(cfg.teacher, "teacher"), "teacher")
    verifier = build.required(build.build_detector(cfg.verifier, "verifier"), "verifier")
    return build.build_inversion(cfg, teacher, verifier), teacher, verifier


def fit(module: InversionModule, callback: lightning.Callback) -> None:
    silent: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, callbacks=[callback], **silent).fit(module)


def run(method: str, seed: int) -> dict[str, Any]:
    """One set: the verifier's AP50 over iterations."""
    module, _, verifier = inversion(method, f"seed={seed}")
    watch = Watch(METHODS[method][2])
    fit(module, watch)
    curve = []
    for mark, parts in sorted(watch.kept.items()):
        looks = [seen(verifier, images, targets, module.stages[-1].resolution[0]) for images, targets in parts]
        value = ap50([d for found, _ in looks for d in found], [t for _, targets in looks for t in targets]).value
        curve.append({"iterations": mark, "verifier_ap50": round(value, 4)})
    return {"method": method, "seed": seed, "curve": curve, "torch": torch.__version__}


def costs(method: str, pairs: int) -> dict[str, Any]:
    """What a step of each stage costs in bare steps. The looks for the best iterate, a forward pass every 25 steps, are left out for all."""
    module, teacher, _ = inversion(method, "n_images=16", f"look_every={10**6}", "compile=false")
    lengths = [stage.iterations for stage in module.stages]
    module.stages = [dataclasses.replace(stage, iterations=WARM_UP + pairs) for stage in module.stages]
    bare = Pairs(bare_inversion(teacher, 16, argparse.Namespace(device="cpu", precision="32-true")), torch.device("cpu"))
    fit(module, bare)
    stages = []
    for number, iterations in enumerate(lengths):
        first = number * (WARM_UP + pairs)
        part = slice(first + WARM_UP, first + WARM_UP + pairs - 1)  # the last step also ends the stage
        steps = zip(bare.full_seconds[part], bare.bare_seconds[part], strict=True)
        ratio = statistics.median(full / alone for full, alone in steps)
        stages.append({"iterations": iterations, "ratio": round(ratio, 3)})
    return {"method": method, "stages": stages, "bare_ms": [round(1e3 * seconds, 1) for seconds in bare.bare_seconds]}


def timed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs among the lines, each point of their curves with its seconds for both batches."""
    bare = statistics.median(ms for line in lines for ms in line.get("bare_ms", [])) / 1e3
    ratios = defaultdict(list)
    for line in lines:
        if "stages" in line:
            ratios[line["method"]].append([stage["ratio"] for stage in line["stages"]])
    lengths = {line["method"]: [stage["iterations"] for stage in line["stages"]] for line in lines if "stages" in line}

    def seconds(method: str, iterations: int) -> float:
        total, before = 0.0, 0
        for number, length in enumerate(lengths[method]):
            ratio = statistics.median(r[number] for r in ratios[method])
            total += min(max(iterations - before, 0), length) * ratio
            before += length
        return 2 * bare * total

    return [
        line | {"curve": [point | {"seconds": seconds(line["method"], point["iterations"])} for point in line["curve"]]}
        for line in lines
        if "curve" in line
    ]


def figure(runs: list[dict[str, Any]], path: Path) -> None:
    """Verifier AP50 over seconds: a thin line a seed, a thick one through their means."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    methods = [m for m in METHODS if any(r["method"] == m for r in runs)]
    for number, method in enumerate(methods):
        colour = plotting.distinct(number)
        own = [r["curve"] for r in runs if r["method"] == method]
        for curve in own:
            axes.plot([p["seconds"] for p in curve], [p["verifier_ap50"] for p in curve], color=colour, alpha=0.3, linewidth=1)
        points = list(zip(*own))
        mean = [[statistics.fmean(p[key] for p in point) for point in points] for key in ("seconds", "verifier_ap50")]
        axes.plot(*mean, color=colour, marker="o", label=METHODS[method][0])
    axes.set(xscale="log", xlabel="seconds of optimisation, 32 images", ylabel="AP50 of the verifier", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.2)
    plotting.save(figure, path)


def table(runs: list[dict[str, Any]]) -> str:
    """Means and spreads over seeds, and when each method reaches the best official mean."""
    by_method = {m: [r for r in runs if r["method"] == m] for m in METHODS}
    lines = ["| method | seeds | iterations | seconds | verifier AP50, mean (least, greatest) |", "|---|---|---|---|---|"]
    for method, own in by_method.items():
        if own:
            last = [r["curve"][-1] for r in own]
            scores = [p["verifier_ap50"] for p in last]
            seconds = last[0]["seconds"]
            spread = f"{statistics.fmean(scores):.3f} ({min(scores):.3f}, {max(scores):.3f})"
            lines.append(f"| {METHODS[method][0]} | {len(own)} | {last[0]['iterations']} | {seconds:.0f} | {spread} |")
    official = [
        (statistics.fmean(r["curve"][-1]["verifier_ap50"] for r in own), own[0]["curve"][-1]["seconds"])
        for method, own in by_method.items()
        if own and method.startswith("official")
    ]
    if official:
        score, seconds = max(official)
        lines += ["", f"The better official form ends at {score:.3f} after {seconds:.0f} s. Means over seeds reach that"]
        for method, own in by_method.items():
            if own and not method.startswith("official"):
                points = [
                    (at[0]["seconds"], at[0]["iterations"])
                    for at in zip(*(r["curve"] for r in own))
                    if statistics.fmean(p["verifier_ap50"] for p in at) >= score
                ]
                when = f"after {points[0][0]:.0f} s, {points[0][0] / seconds:.3f} of its time" if points else "never"
                lines.append(f"- {METHODS[method][0]}: {when}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/latest-quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quiet()
    log = args.out.with_suffix(".jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def add(line: dict[str, Any]) -> None:
        lines.append(line)
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    for seed in args.seeds:
        for method in args.methods:
            if not any(line["method"] == method and line.get("seed") == seed for line in lines):
                add(run(method, seed))
                print(method, seed, lines[-1]["curve"][-1], flush=True)
    for _ in range(2):  # twice, in turn
        for method in METHODS:
            if any(line["method"] == method for line in lines):
                add(costs(method, args.pairs))
    runs = timed(lines)
    figure(runs, args.out.with_suffix(".png"))
    args.out.with_suffix(".md").write_text(table(runs))
    print(table(runs))


if __name__ == "__main__":
    main()
