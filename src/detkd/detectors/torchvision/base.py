"""What the four families share: normalisation, level names, anchors, targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import permute_and_flatten

from detkd.detectors.torchvision.architecture import Architecture
from detkd.detectors.torchvision.labels import HeadLabels
from detkd.errors import InputError
from detkd.structures import DetectorSpec, Target

Size = tuple[int, int]


class Normalise(nn.Module):
    """(images - mean) / std of RGB images in [0, 1]. Its buffers are not part of the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to the same shape. Raises ValueError on other shapes."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(images.shape)}")
        return (images - self.mean) / self.std


def size_of(images: Tensor) -> Size:
    """(height, width) of (..., H, W)."""
    return images.shape[-2], images.shape[-1]


def image_list(image_size: Size, count: int) -> ImageList:
    """torchvision's ImageList of ``count`` images at our size, without pixels: its readers look at sizes only."""
    return ImageList(torch.empty(1).expand(count, 3, *image_size), [image_size] * count)


def level_sizes(maps: Iterable[Tensor], anchors: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(height, width, anchors) of each level from its map (B, C, H, W)."""
    return tuple((*size_of(m), a) for m, a in zip(maps, anchors))


def anchors_of(generator: Any, sizes: Sequence[tuple[int, int, int]], image_size: Size, device: torch.device) -> Tensor:
    """(N, 4) xyxy anchors of one image in the order of ``Prediction.raw``, always float32.

    torchvision makes anchors in the type of its feature maps; bfloat16 would misplace them by up to 4 px.
    """
    maps = [torch.empty(1, device=device).expand(1, 1, h, w) for h, w, _ in sizes]
    return generator(image_list(image_size, 1), maps)[0]


def level_names(prefix: str, strides: Iterable[int]) -> tuple[str, ...]:
    """Names by log2 of the stride: "p3" for stride 8; a second level of the same stride is "p5b"."""
    names: list[str] = []
    for stride in strides:
        name = f"{prefix}{round(math.log2(stride))}"
        names.append(f"{name}b" if name in names else name)
    return tuple(names)


def flatten_levels(levels: Sequence[Tensor], anchors: Sequence[int], size: int) -> Tensor:
    """Maps (B, A*K, H, W) a level to (B, N, K); ``size`` is K, ``anchors`` A a level."""
    flat = [permute_and_flatten(m, m.shape[0], a, size, m.shape[-2], m.shape[-1]) for m, a in zip(levels, anchors)]
    return torch.cat(flat, dim=1)  # (B, N, K)


def pick_maps(features: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """The maps of those names, in that order. Raises ValueError naming what is missing."""
    if missing := [name for name in names if name not in features]:
        raise ValueError(f"expected the maps {list(names)}, got {list(features)} without {missing}")
    return [features[name] for name in names]


def in_float(values: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are. Losses and boxes are not for half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def head_targets(targets: Sequence[Target], labels: HeadLabels, like: Tensor) -> list[dict[str, Tensor]]:
    """Targets as torchvision wants them: boxes (n, 4) in the type of ``like``, labels as columns of its head.

    A box without area is no object and is left out; torchvision's own losses would divide by its sides.
    Raises ValueError on labels that are not int64 or out of range, naming the target.
    """
    out = []
    for i, target in enumerate(targets):
        boxes = target["boxes"].to(device=like.device, dtype=like.dtype).reshape(-1, 4)  # (n, 4)
        classes = target["labels"].to(like.device)
        if classes.dtype != torch.int64:
            raise ValueError(f"expected int64 labels, got {classes.dtype} in target {i}")
        if classes.numel() and not (int(classes.min()) >= 0 and int(classes.max()) < len(labels.classes)):
            raise ValueError(f"expected labels from 0 to {len(labels.classes) - 1}, got {classes.tolist()} in target {i}")
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # (n,)
        out.append({"boxes": boxes[solid], "labels": labels.to_columns(classes[solid])})
    return out


def check_count(prediction_size: int, targets: Sequence[Target]) -> None:
    """Raises ValueError unless there is one target an image."""
    if prediction_size != len(targets):
        raise ValueError(f"expected one target an image, got {len(targets)} targets for {prediction_size} images")


def check_published(architecture: Architecture, **changed: bool) -> None:
    """Raises InputError naming the arguments that make the published weights not fit."""
    if names := sorted(name for name, is_changed in changed.items() if is_changed):
        raise InputError(f"weights: the published weights of {architecture.name} need the default {', '.join(names)}")
