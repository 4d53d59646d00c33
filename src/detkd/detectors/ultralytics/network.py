"""Build the package's DetectionModel from its yaml, and run it layer by layer.

The model's own forward returns other things in train than in eval mode, and from one version to the next. Its layers do not: each
says which layers' outputs it reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from detkd.detectors.files import read_text
from detkd.detectors.ultralytics.package import import_tasks, model_file
from detkd.errors import InputError

ARCHITECTURES = tuple(family + scale for family in ("yolov8", "yolo11") for scale in "nsmlx")


def build_network(
    architecture: str, classes: Sequence[str], width: float | None = None, depth: float | None = None
) -> nn.Module:
    """The package's DetectionModel with random weights and norms that have seen nothing.

    Args:
        architecture: one of ARCHITECTURES. width, depth: factors on channels and on repeats; None: the architecture's own.

    Raises InputError on an unknown architecture or a factor that is not positive, and where the package is missing.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture: expected one of {list(ARCHITECTURES)}, got {architecture!r}")
    for name, factor in (("width", width), ("depth", depth)):
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            raise InputError(f"{name}: expected a positive factor or null, got {factor!r}")
    tasks = import_tasks()
    family, scale = architecture[:-1], architecture[-1]
    description: dict[str, Any] = yaml.safe_load(read_text(model_file(family)))
    own_depth, own_width, most_channels = description["scales"][scale]
    description["scales"] = {scale: [depth or own_depth, width or own_width, most_channels]}
    description |= {"scale": scale, "nc": len(classes)}
    network: nn.Module = tasks.DetectionModel(description, ch=3, verbose=False)
    network.names = dict(enumerate(classes))  # type: ignore[assignment]  # as the package keeps them
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()  # some versions send a blank image through in train mode to learn the strides
    return network


class Plan:
    """In which order the layers of a network run and what each reads.

    Args:
        network: of :func:`build_network`.

    strides: pixels a cell of each level, fine first. bins: of a side's distribution. stages: layer indices of the backbone's maps
    that the neck reads, fine first. neck: of the maps that the head reads.
    """

    def __init__(self, network: nn.Module) -> None:
        *layers, head = network.model  # type: ignore[misc]
        self.sources = [_sources(index, layer.f) for index, layer in enumerate(layers)]
        self.neck = _sources(len(layers), head.f)
        self.strides = tuple(int(stride) for stride in head.stride)
        self.bins = int(head.reg_max)
        depth = len(network.yaml["backbone"])  # type: ignore[index]
        self.stages = tuple(index for index in sorted(network.save) if index < depth)  # type: ignore[arg-type]

    def run(self, network: nn.Module, images: Tensor) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """(B, 3, H, W) to box maps (B, 4*bins, H', W') and class maps (B, C, H', W') of each level, and named feature maps.

        Features: "c3" ... are the backbone's, "p3" ... the inputs of the head; the number is log2 of the stride.
        """
        *layers, head = network.model  # type: ignore[misc]
        outputs: dict[int, Tensor] = {-1: images}
        for index, (layer, sources) in enumerate(zip(layers, self.sources, strict=True)):
            read = [outputs[source] for source in sources]
            outputs[index] = layer(read if isinstance(layer.f, list) else read[0])
        maps = [outputs[index] for index in self.neck]
        box = [branch(x) for branch, x in zip(head.cv2, maps, strict=True)]
        cls = [branch(x) for branch, x in zip(head.cv3, maps, strict=True)]
        levels = [round(math.log2(stride)) for stride in self.strides]
        features = {f"c{level}": outputs[index] for level, index in zip(levels, self.stages, strict=True)}
        return box, cls, features | {f"p{level}": x for level, x in zip(levels, maps, strict=True)}


def _sources(index: int, given: int | Sequence[int]) -> tuple[int, ...]:
    """Absolute indices of the layers that layer ``index`` reads; -1 is the image. The yaml counts negative ones from the layer."""
    relative = [given] if isinstance(given, int) else list(given)
    return tuple(index + source if source < 0 else source for source in relative)


def flatten(maps: Sequence[Tensor]) -> Tensor:
    """(B, K, H, W) of each level to (B, N, K), N over all levels, fine first."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
