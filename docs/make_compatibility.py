"""Write docs/compatibility.md: which loss terms go with which detectors, found by trying. Run: python docs/make_compatibility.py"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from detkd.detectors.checkpoint import ARCHITECTURES
from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.runtime.run import config_dir
from detkd.structures import Target

TARGET = Path(__file__).with_name("compatibility.md")
CLASSES = ("a", "b", "c")
SMALL: dict[str, Any] = {"classes": CLASSES, "image_size": (64, 64)}
R18: dict[str, Any] = SMALL | {"backbone": "resnet18", "width": 0.125}
FPN: dict[str, Any] = R18 | {"channels": 48}
ROI: dict[str, Any] = {"anchor_size": 8, "rois": 16, "train_proposals": 32, "proposals": 16, "score_threshold": 0.001}
# arguments of a small one of each architecture
SETTINGS: dict[str, Mapping[str, Any]] = {
    "SSD": {"architecture": "ssdlite320_mobilenet_v3_large", "classes": CLASSES, "image_size": (96, 96)},
    "RetinaNet": FPN | {"anchor_size": 8},
    "FCOS": FPN,
    "FasterRCNN": FPN | ROI | {"roi_width": 16},
    "FasterRCNNC4": R18 | ROI,
    "CascadeRCNN": FPN | ROI | {"roi_width": 16},
}
BUILDERS: dict[str, Callable[[], Any]] = {"DarknetDetector": lambda: yolov3_tiny(CLASSES, (64, 64), width=0.125)}
OPTIONAL = {"UltralyticsDetector"}  # not tried: the table must be the same with and without the extra
CROSSES = [("FasterRCNN", "RetinaNet"), ("FasterRCNN", "FCOS")]
# of invert; the others are of distill
INVERSION = ("detection", "bn_stats", "tv", "pixel_l2", "small_copy")


def families() -> list[str]:
    """The architectures that are tried: all of the package's but optional ones."""
    return [name for name in ARCHITECTURES if name not in OPTIONAL]


def terms() -> dict[str, Any]:
    """The settings of every term of conf/loss, by name; bundles are left out."""
    found: dict[str, Any] = {}
    for path in sorted((config_dir() / "loss").glob("*.yaml")):
        nodes = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(nodes, dict)
        found |= {str(k): v for k, v in nodes.items() if isinstance(v, dict) and "_target_" in v}
    return found


def build(name: str, seed: int) -> Detector:
    """A small detector of an architecture, with random weights, in eval mode."""
    torch.manual_seed(seed)
    if name in BUILDERS:
        made = BUILDERS[name]()
    else:
        made = getattr(importlib.import_module(ARCHITECTURES[name]), name)(**SETTINGS[name])
    return remembering(made.eval())


def remembering(detector: Any) -> Any:
    """The detector, which from now on answers equal images with the prediction that it made first: terms probe it with the same ones."""
    forward, known = detector.forward, {}

    def answer(images: Tensor) -> Any:
        key = (tuple(images.shape), float(images.sum()))
        if key not in known:
            known[key] = forward(images)
        return known[key]

    detector.forward = answer
    return detector


@torch.no_grad()
def attempt(settings: Mapping[str, Any], student: Detector | None, teacher: Detector) -> str | None:
    """What a term says against a pair: the message of its InputError, or None. It is set up, and with a student called once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            term = instantiate({k: v for k, v in settings.items() if k != "weight"})
            term.setup(student, teacher)
            if student is not None:
                parts = term(one_step(student, teacher))
                assert all(bool(part.isfinite()) for part in parts.values()), parts
        except InputError as error:
            return str(error)
    return None


def one_step(student: Detector, teacher: Detector) -> Step:
    """Two random images, of which one has an object."""
    images = torch.rand(2, 3, *student.spec.image_size, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0]])
    targets: list[Target] = [
        {"boxes": boxes, "labels": torch.tensor([1])},
        {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return Step(images, targets, teacher, teacher(images), student, student(images))


def reason(message: str) -> str:
    """A message without the term's name, methods and what was found, so that terms and detectors that lack the same share one."""
    expected = message[message.index("expected") :]
    expected = re.sub(r" \(\w+(, \w+)+\)(?=,)", "", expected)
    expected = re.sub(r"loss\.\w+\.levels", "loss.<term>.levels", expected)
    return re.sub(r", found .*?(?=\. Detectors|; loss\.|$)", "", expected)


class Reasons:
    """Reasons by number, in the order in which they came up."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def cell(self, message: str | None) -> str:
        """What stands in the table: yes, or the number of the reason."""
        if message is None:
            return "yes"
        text = reason(message)
        if text not in self.known:
            self.known.append(text)
        return f"[{self.known.index(text) + 1}]"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def document() -> str:
    """The text of docs/compatibility.md."""
    settings, reasons = terms(), Reasons()
    teachers, students = ({name: build(name, seed) for name in families()} for seed in (0, 1))
    documented = {name: f"[{name}](methods/{name}.md)" for name in settings}
    inversion = [name for name in INVERSION if name in settings]
    distillation = [name for name in settings if name == "detection" or name not in INVERSION]
    pairs = [(name, name) for name in teachers] + CROSSES
    heads = [*teachers, *(f"{teacher} to {student}" for teacher, student in CROSSES)]
    distill = [
        [documented[name], *(reasons.cell(attempt(settings[name], students[s], teachers[t])) for t, s in pairs)]
        for name in distillation
    ]
    invert = [
        [documented[name], *(reasons.cell(attempt(settings[name], None, teacher)) for teacher in teachers.values())]
        for name in inversion
    ]
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(reasons.known, start=1))
    return TEXT.format(distill=table(["term", *heads], distill), invert=table(["term", *teachers], invert), reasons=listed)


TEXT = """# Which terms go with which detectors

Found by trying, with small detectors and each term's default settings; written by `python docs/make_compatibility.py`, and a test fails where it is out of
date. Teacher and student are of one architecture, but in the last columns. A number is the [reason](#reasons) why not.

## distill

{distill}

A term that needs neck maps of the same strides also takes other pairs that have them; `loss.<term>.levels` chooses levels that both have.

## invert

{invert}

SSD is SSDlite here. SSD300 has no BatchNorm, so `bn_stats` does not go with it. The detectors of [ultralytics](guides/ultralytics.md), an extra, are not tried here.

## Reasons

{reasons}
"""

if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
