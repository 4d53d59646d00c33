"""The types that cross package borders: Target, Detection, DetectorSpec, Prediction, RoI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypedDict, overload

import torch
from torch import Tensor

Resize = Literal["stretch", "letterbox"]


class Target(TypedDict):
    """What is in one image.

    boxes: (n, 4) float, xyxy, pixels of the image given. labels: (n,) int64, 0-based, no background.
    A box without area (an augmentation moved it out of the image) is no object: every loss passes over it.
    """

    boxes: Tensor
    labels: Tensor


class Detection(Target):
    """What a detector found in one image: a :class:`Target` and scores (n,) float in [0, 1], best first."""

    scores: Tensor


def join_targets(targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """All boxes of a batch in one row: image index (n,) int64, boxes (n, 4), labels (n,)."""
    boxes = torch.cat([t["boxes"] for t in targets])
    labels = torch.cat([t["labels"] for t in targets])
    counts = torch.tensor([len(t["boxes"]) for t in targets])
    return torch.repeat_interleave(counts, output_size=len(boxes)).to(boxes.device, non_blocking=True), boxes, labels


def pseudo_labels(detections: Sequence[Detection], threshold: float) -> list[Target]:
    """Detections as targets: those that score more than ``threshold`` and have a width and a height; scores are dropped."""
    targets: list[Target] = []
    for detection in detections:
        boxes = detection["boxes"]
        keep = (detection["scores"] > threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        targets.append({"boxes": boxes[keep], "labels": detection["labels"][keep]})
    return targets


class PseudoLabels(Sequence[Target]):
    """:func:`pseudo_labels` of ``count`` images, made when first looked at: ``detect`` is called once, without gradients, or never."""

    def __init__(self, detect: Callable[[], Sequence[Detection]], count: int, threshold: float) -> None:
        self._detect, self._count, self._threshold = detect, count, threshold

    @cached_property
    def _targets(self) -> list[Target]:
        with torch.no_grad():
            return pseudo_labels(self._detect(), self._threshold)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> list[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | list[Target]:
        return self._targets[index]


def with_boxes(targets: Sequence[Target], boxes: Tensor) -> list[Target]:
    """The same targets with other boxes, given in one row (n, 4) as :func:`join_targets` makes it."""
    parts = torch.split(boxes, [len(t["boxes"]) for t in targets])
    return [{"boxes": part, "labels": target["labels"]} for part, target in zip(parts, targets)]


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector must be told about images, and what its labels mean.

    Args:
        classes: class names; label ``i`` is ``classes[i]``.
        image_size: (height, width) in pixels that the detector was made for.
        mean, std: per RGB channel; the network sees ``(image - mean) / std`` of an image in [0, 1].
        resize: how an image of another size is brought to ``image_size``.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Resize = "stretch"

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("expected at least one class name, got none")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
            raise ValueError(f"expected class names that differ, got {twice} more than once")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"expected image_size (height, width) of positive pixels, got {self.image_size}")
        if self.resize not in ("stretch", "letterbox"):
            raise ValueError(f"expected resize 'stretch' or 'letterbox', got {self.resize!r}")

    def class_difference(self, student: DetectorSpec) -> str:
        """What differs first between the classes of this teacher and of a student, in words; empty where they are the same."""
        mine, theirs = self.classes, student.classes
        if len(mine) != len(theirs):
            return f"number of classes: teacher {len(mine)}, student {len(theirs)}"
        differing = (i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b)
        return next((f"class {i}: teacher {mine[i]!r}, student {theirs[i]!r}" for i in differing), "")

    def to_dict(self) -> dict[str, Any]:
        """The fields as json-able values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectorSpec:
        """Inverse of :meth:`to_dict`. Raises ValueError on unknown or missing keys."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"expected the keys {sorted(known)} in a detector spec, got also {unknown}")
        if missing := sorted({"classes", "image_size"} - set(values)):
            raise ValueError(f"expected the keys {missing} in a detector spec, found {sorted(values)}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


@dataclass
class Prediction:
    """One forward pass, kept whole, for many readers.

    Args:
        raw: unnormalised head outputs by name, each (B, N, K); N counts all sites, fine level first. Two-stage: the RPN's.
        sizes: (height, width, anchors) of each level, fine first, so that N splits again into levels.
        strides: pixels a cell of each level.
        features: backbone stages and neck maps by name ("c3", "p3", ...), each (B, C, H, W).
        image_size: (height, width) in pixels of the images that were passed in.
        state: private to the adapter that made it: nested dicts of batch-first tensors, or lists with one item an image.
        geometry: what turns raw boxes into boxes, one item a level (anchors in pixels, offsets); detectors whose raw outputs mean the
            same have equal ones.
    """

    raw: dict[str, Tensor]
    sizes: tuple[tuple[int, int, int], ...]
    strides: tuple[int, ...]
    features: dict[str, Tensor]
    image_size: tuple[int, int]
    state: dict[str, Any] = field(default_factory=dict)
    geometry: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return next(iter(self.raw.values())).shape[0]

    def image(self, index: int) -> Prediction:
        """The prediction for image ``index`` alone, as a batch of one that shares its storage."""
        return replace(
            self,
            raw=_image_of(self.raw, index),
            features=_image_of(self.features, index),
            state=_image_of(self.state, index),
        )

    def levels(self, name: str) -> tuple[Tensor, ...]:
        """``raw[name]`` split by level: (B, H*W*A, K) each, fine first."""
        return torch.split(self.raw[name], [h * w * a for h, w, a in self.sizes], dim=1)


class RoI(NamedTuple):
    """What the RoI head of a two-stage detector says of R boxes.

    embedding: (R, D), the last layer before the two predictions. logits: (R, 1 + C), background first, then the classes of the spec.
    deltas: (R, C, 4), a box correction for each class, in the detector's own coding.
    """

    embedding: Tensor
    logits: Tensor
    deltas: Tensor


def _image_of(value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return value[index : index + 1]
    if isinstance(value, Mapping):
        return {k: _image_of(v, index) for k, v in value.items()}
    if isinstance(value, list):
        return value[index : index + 1]
    return value
