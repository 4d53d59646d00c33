"""What distillation terms cost: seconds and memory of a term's loss and backward, over a student's supervised step.

Two students of ResNet-50 at 640 x 640, 2 images, 256 channels, with teachers of ResNet-101 (random weights): RetinaNet (P3 to P7) and Faster R-CNN (P2 to
P6). A term is measured as it is configured, on their predictions: its loss, and its gradient back to the student's maps and heads (not through the
backbone, which training runs anyway), with what it alone asks for (proposals, RoI heads). The student's step is forward, its own loss, backward.
Terms are measured in turn, round by round, so that all see the same machine. SSIM of pytorch-msssim (MIT; in the dev extra) is measured beside ours in
pairs: on random maps rescaled to [0, 1] with plain operations, and on P3 to P5 alone, since it takes no map smaller than its window.
Seconds on a CPU are of the process, not of the wall clock: other work on the machine does not count. Memory is the peak above what was held before.

    python benchmarks/terms.py [--rounds 5] [--threads 1] [--device cpu|cuda] [--precision fp32|bf16] [--size 640 640] [--batch 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib.util
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from detkd.detectors.torchvision import FasterRCNN, RetinaNet
from detkd.losses.composite import Composite
from detkd.losses.queue import FeatureQueue
from detkd.losses.ssim import ssim_loss
from detkd.losses.step import Step
from detkd.runtime.build import build_loss
from detkd.runtime.run import config_dir
from detkd.structures import Prediction, Target

SEED = 0
NECK = ("feature_l1", "feature_l2", "feature_smooth_l1", "ssim", "ms_ssim", "l1_ms_ssim", "pkd", "cwd", "mgd", "defeat_neck")
TERMS = {
    "retinanet": ("mimic", *NECK, "crosskd"),
    "faster_rcnn": (*NECK, "defeat_backbone", "defeat_proposals", "careg", "prediction", "sgfi", "contrastive"),
}
FAMILIES: dict[str, Callable[..., Any]] = {"retinanet": RetinaNet, "faster_rcnn": FasterRCNN}
SIDES = (80, 40, 20)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how all is measured."""

    device: str
    precision: str
    size: tuple[int, int]
    batch: int
    threads: int

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


class Bed:
    """A teacher and a student of one family, with one step of theirs."""

    def __init__(self, family: str, setting: Setting) -> None:
        torch.manual_seed(SEED)
        self.setting = setting
        settings = {"classes": [f"class {i}" for i in range(80)], "image_size": setting.size}
        self.student = FAMILIES[family](**settings).train().to(setting.device)
        self.images = torch.rand(setting.batch, 3, *setting.size, device=setting.device)
        self.teacher = FAMILIES[family](backbone="resnet101", **settings).requires_grad_(False).to(setting.device)
        settle_norms(self.teacher, self.images)
        boxes = torch.tensor([[50.0, 60.0, 300.0, 400.0], [100.0, 20.0, 180.0, 90.0]], device=setting.device)
        labels = torch.tensor([3, 7], device=setting.device)
        self.targets = [Target(boxes=boxes, labels=labels) for _ in range(setting.batch)]
        self.predictions: tuple[Prediction, Prediction] | None = None

    def supervised(self) -> None:
        """The student's forward, loss and backward."""
        with self.setting.autocast():
            losses = self.student.loss(self.student(self.images), self.targets)
        torch.stack(list(losses.values())).sum().backward()
        self.student.zero_grad()

    def loss(self, term: str) -> Composite:
        """A term alone, set up for this pair."""
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            loss = build_loss(compose("distill", [f"loss=[{term}]"]).loss)
        loss.to(self.setting.device)
        loss.setup(self.student, self.teacher)
        for module in loss.modules():
            if isinstance(module, FeatureQueue):  # as it is in training, full
                module.put(torch.randn(module.rows.shape, device=module.rows.device))
        return loss.train()

    def term(self, loss: Composite) -> None:
        """Loss and backward of a term, to leaves in the place of the student's maps and raw outputs."""
        if self.predictions is None:
            with torch.no_grad(), self.setting.autocast():
                self.predictions = self.student(self.images), self.teacher(self.images)
        mine, theirs = self.predictions
        with self.setting.autocast():
            step = Step(
                images=self.images,
                targets=self.targets,
                teacher=self.teacher,
                teacher_prediction=theirs,
                student=self.student,
                student_prediction=as_leaves(mine),
            )
            total, _ = loss(step)
        total.backward()
        self.student.zero_grad()
        loss.zero_grad()


def settle_norms(detector: Any, images: Tensor) -> None:
    """Let the norms of a random network remember these images: in eval mode its values would else grow without bound, and propose nothing."""
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        detector.train()(images)
    detector.eval()


def as_leaves(prediction: Prediction) -> Prediction:
    """The same prediction on leaves that take a gradient."""

    def leaves(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().requires_grad_(value.is_floating_point())
        if isinstance(value, dict):
            return {k: leaves(v) for k, v in value.items()}
        return [leaves(v) for v in value] if isinstance(value, list) else value

    parts = {name: leaves(getattr(prediction, name)) for name in ("raw", "features", "state")}
    return dataclasses.replace(prediction, **parts)


def pytorch_msssim(student: Tensor, teacher: Tensor) -> Tensor:
    from pytorch_msssim import ssim

    def rescaled(maps: Tensor) -> Tensor:
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        return (maps - low) / (high - low)

    with torch.no_grad():
        other = rescaled(teacher)
    return (1 - ssim(rescaled(student), other, data_range=1)) / 2


class Maps:
    """Random maps of P3 to P5, and a loss of two maps summed over them."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], device: str) -> None:
        generator = torch.Generator().manual_seed(SEED)
        both = [[torch.randn(2, 256, side, side, generator=generator).to(device) for _ in range(2)] for side in SIDES]
        self.pairs = [(student.requires_grad_(), teacher) for student, teacher in both]
        self.loss = loss

    def __call__(self) -> None:
        torch.stack([self.loss(student, teacher) for student, teacher in self.pairs]).sum().backward()
        for student, _ in self.pairs:
            student.grad = None


def seconds(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    step()
    return time.process_time() - start


def peak(step: Callable[[], None], device: str) -> float:
    """MiB at the peak of one step above what was held before; on a CPU in a copy of this process, whose freed memory counts for nothing."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    mine, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_measure, args=(step, theirs))
    child.start()
    value: float = mine.recv()
    child.join()
    return value


def _measure(step: Callable[[], None], results: Any) -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that using it again counts
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    step()
    results.send(_resident("VmHWM") - before)


def _resident(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def measure_family(family: str, setting: Setting, rounds: int, terms: Sequence[str] | None) -> dict[str, Any]:
    bed = Bed(family, setting)
    losses = {name: bed.loss(name) for name in TERMS[family] if terms is None or name in terms}
    for loss in losses.values():
        bed.term(loss)
    taken: dict[str, list[float]] = {name: [] for name in ("supervised", *losses)}
    bed.supervised()
    for _ in range(rounds):
        taken["supervised"].append(seconds(bed.supervised, setting.device))
        for name, loss in losses.items():
            taken[name].append(seconds(lambda loss=loss: bed.term(loss), setting.device))
    whole = statistics.median(taken["supervised"])
    result = {}
    for name, values in taken.items():
        mib = peak(bed.supervised if name == "supervised" else partial(bed.term, losses[name]), setting.device)
        ratios = [a / b for a, b in zip(values, taken["supervised"])]
        result[name] = {
            "ms": round(1e3 * statistics.median(values), 2),
            "of_step": round(statistics.median(ratios), 4),
            "peak_mib": round(mib, 1),
        }
        print(f"{family} {name}: {result[name]}", flush=True)
    print(f"{family}: a supervised step takes {whole:.2f} s", flush=True)
    return result


def measure_ssim(setting: Setting, rounds: int) -> dict[str, Any]:
    """Ours and pytorch-msssim's on the same maps, in pairs."""
    steps = {"ssim": Maps(ssim_loss, setting.device), "pytorch_msssim": Maps(pytorch_msssim, setting.device)}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            value = seconds(step, setting.device)
            if i:
                taken[name].append(value)
    mib = {name: round(peak(step, setting.device), 1) for name, step in steps.items()}
    ratios = sorted(a / b for a, b in zip(taken["ssim"], taken["pytorch_msssim"]))
    result = {
        "ms": {name: round(1e3 * statistics.median(values), 2) for name, values in taken.items()},
        "peak_mib": mib,
        "time_ratio": round(statistics.median(ratios), 3),
        "time_ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
        "memory_ratio": round(mib["ssim"] / mib["pytorch_msssim"], 3),
    }
    print(f"ssim beside pytorch-msssim, P3 to P5: {result}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=21, help="of ours and pytorch-msssim's SSIM")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES))
    parser.add_argument("--terms", nargs="+", help="these alone; all where left out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/latest-terms.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setting = Setting(args.device, args.precision, tuple(args.size), args.batch, args.threads)
    out: dict[str, Any] = {
        "setting": dataclasses.asdict(setting),
        "rounds": args.rounds,
        "seed": SEED,
        "torch": torch.__version__,
    }
    out["machine"] = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    if importlib.util.find_spec("pytorch_msssim") is not None:
        out["ssim_beside_pytorch_msssim"] = measure_ssim(setting, args.pairs)
    for family in args.families:
        out[family] = measure_family(family, setting, args.rounds, args.terms)
    args.out.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
