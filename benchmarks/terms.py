"""What the terms on neck maps cost: seconds and memory of loss and backward, over a student's forward and backward.

The maps are those of a RetinaNet-R50 at 640 x 640: P3 to P7, 256 channels, 2 images; the student is that RetinaNet with its own loss. Terms are
measured in turn, round by round, so that all see the same machine. SSIM of pytorch-msssim (MIT; ``pip install pytorch-msssim``) is measured beside ours
where it is installed: on maps rescaled to [0, 1] with plain operations, and on P3 to P5 alone, since it takes no map smaller than its window.
Seconds on a CPU are of the process, not of the wall clock: other work on the machine does not count. Memory is the peak above the maps.

    python benchmarks/terms.py [--rounds 7] [--threads 1] [--device cpu|cuda] [--out FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from detkd.detectors.torchvision import RetinaNet
from detkd.losses.connectors import over_levels
from detkd.losses.cwd import cwd_loss
from detkd.losses.feature_l1 import feature_l1_loss
from detkd.losses.feature_l2 import feature_l2_loss
from detkd.losses.feature_smooth_l1 import feature_smooth_l1_loss
from detkd.losses.l1_ms_ssim import rescaled_l1_loss
from detkd.losses.mgd import generation_block, mgd_loss
from detkd.losses.ms_ssim import ms_ssim_loss
from detkd.losses.pkd import pkd_loss
from detkd.losses.ssim import ssim_loss

SIDES, BATCH, CHANNELS, SIZE, SEED = (80, 40, 20, 10, 5), 2, 256, 640, 0
Loss = Callable[[Tensor, Tensor], Tensor]


def l1_ms_ssim(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.15 * rescaled_l1_loss(student, teacher) + 0.85 * ms_ssim_loss(student, teacher)


def mgd(student: Tensor, teacher: Tensor, block: nn.Module) -> Tensor:
    return mgd_loss(student, teacher, torch.rand(BATCH, 1, *student.shape[2:], device=student.device) >= 0.65, block)


def pytorch_msssim(student: Tensor, teacher: Tensor) -> Tensor:
    from pytorch_msssim import ssim

    def rescaled(maps: Tensor) -> Tensor:
        low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        return (maps - low) / (high - low)

    with torch.no_grad():
        other = rescaled(teacher)
    return (1 - ssim(rescaled(student), other, data_range=1)) / 2


def losses(device: str) -> dict[str, tuple[Loss, Sequence[int]]]:
    """By name: a loss of two maps, and the sides of the maps that it is measured on."""
    block = generation_block(CHANNELS).to(device)
    found: dict[str, tuple[Loss, Sequence[int]]] = {
        "feature_l1": (feature_l1_loss, SIDES),
        "feature_l2": (feature_l2_loss, SIDES),
        "feature_smooth_l1": (feature_smooth_l1_loss, SIDES),
        "ssim": (ssim_loss, SIDES),
        "ms_ssim": (ms_ssim_loss, SIDES),
        "l1_ms_ssim": (l1_ms_ssim, SIDES),
        "pkd": (pkd_loss, SIDES),
        "cwd": (cwd_loss, SIDES),
        "mgd": (partial(mgd, block=block), SIDES),
        "ssim, P3 to P5": (ssim_loss, SIDES[:3]),
    }
    if importlib.util.find_spec("pytorch_msssim") is not None:
        found["pytorch-msssim, P3 to P5"] = (pytorch_msssim, SIDES[:3])
    return found


def maps(sides: Sequence[int], device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Student (with a gradient) and teacher maps by level."""
    generator = torch.Generator().manual_seed(SEED)
    pairs = {}
    for side in sides:
        student, teacher = (torch.randn(BATCH, CHANNELS, side, side, generator=generator).to(device) for _ in range(2))
        pairs[str(side)] = (student.requires_grad_(), teacher)
    return pairs


def step_of(name: str, device: str) -> Callable[[], None]:
    """Loss and backward of a term; or of "student", a RetinaNet's forward, loss and backward."""
    torch.manual_seed(SEED)
    if name == "student":
        student = RetinaNet(classes=[f"class {i}" for i in range(80)], image_size=(SIZE, SIZE)).train().to(device)
        images = torch.rand(BATCH, 3, SIZE, SIZE, device=device)
        boxes = torch.tensor([[50.0, 60.0, 300.0, 400.0], [100.0, 20.0, 180.0, 90.0]])
        targets = [{"boxes": boxes, "labels": torch.tensor([3, 7])}] * BATCH

        def whole() -> None:
            torch.stack(list(student.loss(student(images), targets).values())).sum().backward()
            student.zero_grad()

        return whole
    loss, sides = losses(device)[name]
    pairs = maps(sides, device)

    def step() -> None:
        over_levels(pairs, loss).backward()
        for student, _ in pairs.values():
            student.grad = None

    return step


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


def peak(name: str, device: str, threads: int) -> float:
    """MiB at the peak of one step above what was there before, in a process of its own."""
    torch.set_num_threads(threads)
    step = step_of(name, device)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    small = torch.rand(2, 4, 16, 16, requires_grad=True)
    ssim_loss(small, torch.rand(2, 4, 16, 16)).backward()  # libraries load on first use
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--student-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/latest-terms.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = list(losses(args.device))
    steps = {name: step_of(name, args.device) for name in names}
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step, args.device))
    steps.clear()
    student = step_of("student", args.device)
    if args.device == "cuda":
        student()
    whole = statistics.median(seconds(student, args.device) for _ in range(args.student_rounds))
    context = multiprocessing.get_context("spawn")
    result = {}
    for name in names:
        with context.Pool(1) as pool:
            mib = pool.apply(peak, (name, args.device, args.threads))
        median = statistics.median(taken[name])
        result[name] = {
            "ms": round(1e3 * median, 2),
            "of_student": round(median / whole, 4),
            "peak_mib": round(mib, 1),
        }
        print(f"{name}: {1e3 * median:.1f} ms, {100 * median / whole:.2f} % of the student, {mib:.0f} MiB", flush=True)
    out = {
        "terms": result,
        "student_ms": round(1e3 * whole, 1),
        "rounds": args.rounds,
        "seed": SEED,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()}, {args.threads} threads",
    }
    if "pytorch-msssim, P3 to P5" in taken:
        pairs = zip(taken["ssim, P3 to P5"], taken["pytorch-msssim, P3 to P5"])
        out["ssim_over_pytorch_msssim"] = round(statistics.median(a / b for a, b in pairs), 3)
        print(f"ssim over pytorch-msssim, P3 to P5: {out['ssim_over_pytorch_msssim']}")
    args.out.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
