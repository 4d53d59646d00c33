"""make bench: the cost of one step against the bare network, measured in pairs in one run.

Inversion: a full step (all terms, all augmentations, optimiser) as the trainer runs it, over the bare forward and backward to
the pixels of the same frozen teacher (unfolded, eager, same dtype, plain memory format) at the same size. Mimic: a full
distillation step (augmentation, both forwards, loss, backward, optimiser, average) over teacher forward, student forward and
backward, optimiser. After each step of the trainer the bare one is timed, so that both see the same machine.

Inversion is measured as it is and with compile=true; the seconds that compilation takes are reported apart.

    python benchmarks/bench.py [--pairs 15] [--threads N] [--device cpu|cuda] [--precision 32-true|bf16-mixed]
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch

from detkd.data.augment import Compose as TrainCompose
from detkd.data.augment import HorizontalFlip, HsvJitter
from detkd.data.datamodule import DetectionDataModule
from detkd.data.noise import NoiseDataset
from detkd.detectors.darknet.detector import from_cfg, yolov3
from detkd.detectors.files import File
from detkd.detectors.pretrained import pretrained
from detkd.detectors.protocol import Detector
from detkd.distillation.module import DistillationModule
from detkd.inversion.augment import Brightness, Compose, Contrast, Cutout, Flip, Jitter
from detkd.inversion.image import PyramidFactory
from detkd.inversion.layout import UniformBoxes
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Stage
from detkd.losses.bn_stats import BatchNormStatistics
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.losses.mimic import Mimic
from detkd.losses.pixel_l2 import PixelL2
from detkd.losses.tv import TotalVariation
from detkd.runtime.run import quiet

CLASSES = tuple(f"class {i}" for i in range(80))
WARM_UP = 3


def yolo_fastest(name: str, weights: bool) -> Detector:
    """A Yolo-Fastest of the shared weights, or from scratch."""
    architecture = partial(from_cfg, File(f"{name}.cfg"))
    return pretrained(architecture, File("coco.names"), File(f"{name}.weights") if weights else None)


def teachers() -> dict[str, tuple[Callable[[], Detector], int]]:
    """Detector and batch size of each inversion that is measured, at 160 px."""
    return {
        "yolo_fastest_xl": (partial(yolo_fastest, "yolo-fastest-1.1-xl", True), 16),
        "yolov3_spp": (partial(pretrained, partial(yolov3, spp=True), CLASSES), 8),
    }


class Pairs(lightning.Callback):
    """Time each step of the trainer, then ``bare`` right after it."""

    def __init__(self, bare: Callable[[], None], device: torch.device) -> None:
        self.bare, self.device = bare, device
        self.full_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self._start = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = self._now()

    def on_train_batch_end(self, *_: Any) -> None:
        middle = self._now()
        self.full_seconds.append(middle - self._start)
        self.bare()
        self.bare_seconds.append(self._now() - middle)

    def report(self) -> dict[str, float]:
        full, bare = self.full_seconds[WARM_UP:], self.bare_seconds[WARM_UP:]
        ratios = sorted(f / b for f, b in zip(full, bare, strict=True))
        return {
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "step_ms": 1e3 * statistics.median(full),
            "bare_ms": 1e3 * statistics.median(bare),
            "pairs": len(ratios),
        }


def trainer_for(steps: int, args: argparse.Namespace, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        precision=args.precision,
        max_steps=steps if steps else -1,
        max_epochs=1 if not steps else -1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=callbacks,
    )


def inversion_module(detector: Detector, batch: int, steps: int, compile: bool = False) -> InversionModule:
    loss = Composite(
        {
            "detection": DetectionLoss(),
            "bn_stats": BatchNormStatistics("kl"),
            "tv": TotalVariation("clean"),
            "pixel_l2": PixelL2(),
        },
        {"detection": 1.0, "bn_stats": 1.0, "tv": 2.0, "pixel_l2": 1e-4},
    )
    stage = Stage((160, 160), steps, partial(torch.optim.Adam, lr=0.03, betas=(0.9, 0.99), fused=True))
    augmentation = Compose([Jitter(), Flip(), Brightness(), Contrast(), Cutout()])
    settings: dict[str, Any] = {"n_images": batch, "batch_size": batch, "look_every": 10**6, "compile": compile}
    return InversionModule(detector, PyramidFactory(), loss, UniformBoxes(), augmentation, [stage], **settings)


def bare_inversion(detector: Detector, batch: int, args: argparse.Namespace) -> Callable[[], None]:
    images = torch.rand(batch, 3, 160, 160, device=args.device)

    def step() -> None:
        pixels = images.clone().requires_grad_()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16-mixed"):
            prediction = detector(pixels)
            loss = torch.stack([raw.float().square().mean() for raw in prediction.raw.values()]).sum()
        loss.backward()

    return step


def measure_inversion(name: str, args: argparse.Namespace, compile: bool = False) -> dict[str, Any]:
    build, batch = teachers()[name]
    detector = build()
    detector.eval().requires_grad_(False)
    detector.to(args.device)
    # The last step also finishes the batch (a look at every image), which is no step: it is timed, and left out.
    pairs = Pairs(bare_inversion(detector, batch, args), torch.device(args.device))
    module = inversion_module(detector, batch, WARM_UP + args.pairs + 1, compile)
    trainer_for(0, args, [pairs]).fit(module)
    pairs.full_seconds.pop()
    pairs.bare_seconds.pop()
    return pairs.report() | {"batch": batch, "resolution": 160, "compile_seconds": round(module.compile_seconds, 1)}


def mimic_parts(labels: bool, size: int = 320, batch: int = 8) -> tuple[DistillationModule, DetectionDataModule]:
    """Distillation by mimic alone, or with the teacher's labels besides, the default of ``detkd.distill``."""
    teacher, student = yolo_fastest("yolo-fastest-1.1-xl", True), yolo_fastest("yolo-fastest-1.1", False)
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.937, nesterov=True, weight_decay=5e-4)
    augmentation = TrainCompose([HorizontalFlip(), HsvJitter()])
    terms = {"mimic": Mimic()} | ({"detection": DetectionLoss()} if labels else {})
    loss = Composite(terms, dict.fromkeys(terms, 1.0))
    module = DistillationModule(student, teacher, loss, optimizer, augmentation, "teacher" if labels else "none", 0.05)
    data = DetectionDataModule(NoiseDataset(batch, image_size=(size, size)), batch_size=batch)
    return module, data


def bare_mimic(args: argparse.Namespace, size: int = 320, batch: int = 8) -> Callable[[], None]:
    teacher, student = yolo_fastest("yolo-fastest-1.1-xl", True), yolo_fastest("yolo-fastest-1.1", False)
    teacher.eval().requires_grad_(False)
    teacher.to(args.device)
    student.to(args.device)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-6, momentum=0.937, nesterov=True, weight_decay=5e-4)
    images = torch.rand(batch, 3, size, size, device=args.device)

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16-mixed"):
            with torch.no_grad():
                teacher(images)
            prediction = student(images)
            loss = torch.stack([raw.float().square().mean() for raw in prediction.raw.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure_mimic(args: argparse.Namespace, labels: bool = False) -> dict[str, Any]:
    module, data = mimic_parts(labels)
    pairs = Pairs(bare_mimic(args), torch.device(args.device))
    trainer_for(WARM_UP + args.pairs, args, [pairs]).fit(module, data)
    return pairs.report() | {"batch": 8, "resolution": 320, "teacher": "yolo_fastest_xl", "student": "yolo_fastest"}


def peak_rss() -> float:
    """MiB of this process's peak resident memory (not of its parent's, which ru_maxrss would start from)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def peak_memory(kind: str, name: str, args: argparse.Namespace) -> float:
    """MiB that 3 steps take at their peak above the built detectors, in a process of its own."""
    torch.set_num_threads(args.threads)
    quiet()
    before: float
    if kind == "mimic":
        module, data = mimic_parts(labels=False)
        step = bare_mimic(args)
        run: Callable[[], None] = (
            (lambda: [step() for _ in range(3)] and None)
            if name == "bare"
            else (lambda: trainer_for(3, args, []).fit(module, data))
        )
    else:
        build, batch = teachers()[kind]
        detector = build()
        detector.eval().requires_grad_(False)
        detector.to(args.device)
        bare = bare_inversion(detector, batch, args)
        run = (
            (lambda: [bare() for _ in range(3)] and None)
            if name == "bare"
            else (lambda: trainer_for(0, args, []).fit(inversion_module(detector, batch, 3)))
        )
    gc.collect()
    if args.device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20 - before
    before = peak_rss()
    run()
    return peak_rss() - before


def memory(kind: str, args: argparse.Namespace) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in ("full", "bare"):
        with context.Pool(1) as pool:
            peaks[f"{name}_peak_mib"] = round(pool.apply(peak_memory, (kind, name, args)), 1)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/latest.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quiet()
    details: dict[str, Any] = {}
    for name in teachers():
        details[name] = measure_inversion(name, args) | memory(name, args)
        print(f"inversion {name}: {details[name]['ratio']:.3f} of the bare step", flush=True)
        compiled = details[f"{name}, compiled"] = measure_inversion(name, args, compile=True)
        seconds = compiled["compile_seconds"]
        print(f"inversion {name}, compiled in {seconds:.0f} s: {compiled['ratio']:.3f} of the bare step", flush=True)
    details["mimic"] = measure_mimic(args) | memory("mimic", args)
    print(f"mimic: {details['mimic']['ratio']:.3f} of the bare step", flush=True)
    details["mimic and labels"] = measure_mimic(args, labels=True)
    print(f"mimic and the teacher's labels: {details['mimic and labels']['ratio']:.3f} of the bare step of mimic", flush=True)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()}, {args.threads} threads"
    result = {
        "inversion_step_ratio": {name: details[name]["ratio"] for name in teachers()},
        "compiled_inversion_step_ratio": {name: details[f"{name}, compiled"]["ratio"] for name in teachers()},
        "mimic_step_ratio": details["mimic"]["ratio"],
        "details": details,
        "torch": torch.__version__,
        "device": device,
        "precision": args.precision,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
