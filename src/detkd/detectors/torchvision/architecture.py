"""What is fixed about one torchvision detector: its sizes, its defaults, and how its published weights were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from detkd.errors import InputError
from detkd.structures import DetectorSpec, Resize

Rgb = tuple[float, float, float]
Conventions = Literal["torchvision", "mmdetection"]
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """The values torchvision's builder of one detector uses.

    Args:
        name: of the builder, as in ``torchvision.models.get_model``.
        backbone: the builder's own.
        strides: pixels a cell of each level, fine first.
        image_size: (height, width); torchvision scales the shorter side of the FPN detectors to 800 px, we take a square of it.
        score_threshold, nms_iou, max_detections: of decoding.
        frozen_norms, frozen_eps: what norms the *published* weights belong to (FrozenBatchNorm2d, and with which eps).
    """

    name: str
    backbone: str
    strides: tuple[int, ...]
    image_size: tuple[int, int] = (800, 800)
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    frozen_norms: bool = False
    frozen_eps: float = 1e-5


def find_architecture(name: str, table: Mapping[str, Architecture]) -> Architecture:
    """The architecture of a name. Raises InputError that lists the names there are."""
    if name not in table:
        raise InputError(f"architecture: expected one of {sorted(table)}, got {name!r}")
    return table[name]


def table_of(*architectures: Architecture) -> dict[str, Architecture]:
    """Architectures by name."""
    return {a.name: a for a in architectures}


def make_spec(
    architecture: Architecture,
    classes: Sequence[str],
    image_size: Sequence[int] | None,
    resize: Resize,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> DetectorSpec:
    """A spec in which None stands for the architecture's own value. Raises InputError on values of the wrong length or sign."""
    height_width = tuple(int(v) for v in (image_size or architecture.image_size))
    if len(height_width) != 2 or min(height_width) < 1:
        raise InputError(f"image_size: expected (height, width) in positive pixels, got {height_width}")
    return DetectorSpec(
        classes=tuple(classes),
        image_size=(height_width[0], height_width[1]),
        mean=_rgb("mean", mean or architecture.mean),
        std=_rgb("std", std or architecture.std),
        resize=resize,
    )


def _rgb(name: str, values: Sequence[float]) -> Rgb:
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        kind = "positive numbers" if name == "std" else "numbers"
        raise InputError(f"{name}: expected three {kind}, one a channel, got {list(values)}")
    return float(values[0]), float(values[1]), float(values[2])


def check_conventions(name: str, backbone: str) -> Conventions:
    """The conventions of that name. Raises InputError on others, and where a backbone knows torchvision's alone."""
    if name not in get_args(Conventions):
        raise InputError(f"conventions: expected one of {', '.join(get_args(Conventions))}, got {name!r}")
    if name == "mmdetection" and not backbone.startswith("resnet"):
        raise InputError(f"conventions: expected a ResNet for {name}, got {backbone}")
    return cast(Conventions, name)
