"""How good an image is: what the teacher, the teacher under small changes of the image, and a verifier make of it.

No part of the loss. Judged are the 8-bit images as stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from detkd.boxes import clip_xyxy, iou_xyxy
from detkd.classes import label_map
from detkd.detectors.modes import looking
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.structures import Detection, Target


def best_matches(detection: Detection, target: Target) -> tuple[Tensor, Tensor]:
    """For each box of a target, (n,) each: the best score of a detection of its class with IoU >= .5, and the best IoU of one; else 0."""
    if not len(detection["labels"]):
        nothing = target["boxes"].new_zeros(len(target["boxes"]))
        return nothing, nothing
    same = target["labels"][:, None] == detection["labels"][None]  # (n, m)
    iou = iou_xyxy(target["boxes"], detection["boxes"]) * same
    return (detection["scores"][None] * (iou >= 0.5)).amax(1), iou.amax(1)


class View(NamedTuple):
    """A small change of images (B, 3, H, W) in [0, 1], and where boxes xyxy of the changed image lie in the first one."""

    change: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor, tuple[int, int]], Tensor]


def _mirror(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1)


def _smaller(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    small = F.interpolate(images, size=(round(height * 0.8), round(width * 0.8)), mode="bilinear", antialias=True)
    bottom, right = height - small.shape[-2], width - small.shape[-1]
    return F.pad(small, (0, right, 0, bottom), value=0.5)


def _enlarge(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return boxes * boxes.new_tensor([width / round(width * 0.8), height / round(height * 0.8)] * 2)


def _as_is(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return boxes


# Mirrored; at 0.8 of the size on grey; darker and of less contrast; shifted by 3 and 5 pixels with the edge drawn out.
VIEWS = (
    View(lambda images: images.flip(-1), _mirror),
    View(_smaller, _enlarge),
    View(lambda images: images * 0.8 + 0.05, _as_is),
    View(lambda i: F.pad(i, (5, 0, 3, 0), mode="replicate")[..., :-3, :-5], lambda b, s: b - b.new_tensor([5, 3, 5, 3])),
)


class Judge:
    """Score images by a teacher and maybe a verifier.

    Args:
        teacher: what the labels of the targets mean is its. verifier: a detector that knows the teacher's classes, by name.
        agreement: also look at four changed views of each image; four more forward passes.

    Raises InputError where the verifier lacks a class of the teacher.
    """

    def __init__(self, teacher: Detector, verifier: Detector | None = None, agreement: bool = True) -> None:
        self.teacher, self.verifier, self.agreement = teacher, verifier, agreement
        self._labels = (
            None if verifier is None else torch.tensor(label_map(teacher.spec.classes, verifier.spec.classes, "verifier"))
        )

    @property
    def scores(self) -> tuple[str, ...]:
        """The keys of a record."""
        return (
            *("teacher_score", "teacher_iou"),
            *(("agreement",) if self.agreement else ()),
            *(("verifier_score", "verifier_iou") if self.verifier is not None else ()),
        )

    def __call__(self, images: Tensor, targets: Sequence[Target], device: torch.device | str = "cpu") -> list[dict[str, Any]]:
        """A record an image; every value is a mean over its boxes, 0 without boxes.

        images: (B, 3, H, W) uint8. targets: CPU. teacher_score, teacher_iou: see :func:`best_matches`; verifier_score, verifier_iou
        the same of the verifier. agreement: the share of (box, view) pairs in which the teacher finds the box again, with IoU >= .5
        and at least half of its score in the image as it is.
        """
        shown = images.to(device).float() / 255
        plain = [best_matches(d, t) for d, t in zip(detections_of(self.teacher, shown), targets, strict=True)]
        records: list[dict[str, Any]] = [{"teacher_score": _mean(s), "teacher_iou": _mean(i)} for s, i in plain]
        if self.agreement:
            found = [self._found_again(view, shown, targets, [s for s, _ in plain]) for view in VIEWS]
            for index, record in enumerate(records):
                record["agreement"] = _mean(torch.cat([of_view[index] for of_view in found]))
        if self.verifier is not None:
            self.verifier.to(device)
            assert self._labels is not None
            named: list[Target] = [{"boxes": t["boxes"], "labels": self._labels[t["labels"]]} for t in targets]
            for record, detection, target in zip(records, detections_of(self.verifier, shown), named):
                score, iou = best_matches(detection, target)
                record |= {"verifier_score": _mean(score), "verifier_iou": _mean(iou)}
        return records

    def _found_again(self, view: View, images: Tensor, targets: Sequence[Target], scores: Sequence[Tensor]) -> list[Tensor]:
        size = (images.shape[-2], images.shape[-1])
        again = []
        for detection, target, score in zip(detections_of(self.teacher, view.change(images)), targets, scores):
            boxes = clip_xyxy(view.undo(detection["boxes"], size), size)
            moved: Detection = {"boxes": boxes, "labels": detection["labels"], "scores": detection["scores"]}
            seen, _ = best_matches(moved, target)
            again.append(((seen > 0) & (seen >= score / 2) & (score > 0)).float())
        return again


def detections_of(detector: Detector, images: Tensor) -> list[Detection]:
    """What a detector sees in images (B, 3, H, W) in [0, 1] on its device: boxes in their pixels, on the CPU."""
    with looking(detector), torch.autocast(images.device.type, enabled=False):
        found = detector.decode(detector(images))
    return [
        {"boxes": d["boxes"].float().cpu(), "labels": d["labels"].cpu(), "scores": d["scores"].float().cpu()} for d in found
    ]


def _mean(values: Tensor) -> float:
    return round(float(values.mean()), 4) if len(values) else 0.0


@dataclass(frozen=True)
class Acceptance:
    """When an image is good enough, and what happens when it is not.

    Args:
        teacher_score, teacher_iou, agreement, verifier_score, verifier_iou: least values of a record (:class:`Judge`); None asks nothing.
        attempts: a batch is made again, with other boxes and other noise, until it has its number of accepted images, at most this
            many times in all. Accepted ones count in the order they were made; the rest is filled with the best of the others.
        rejected: "keep" leaves these in the set, with ``accepted: false`` in their record; "drop" leaves them out.
    """

    teacher_score: float | None = None
    teacher_iou: float | None = None
    agreement: float | None = None
    verifier_score: float | None = None
    verifier_iou: float | None = None
    attempts: int = 1
    rejected: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InputError(f"accept.attempts: expected at least 1, got {self.attempts}")
        if self.rejected not in ("keep", "drop"):
            raise InputError(f"accept.rejected: expected keep or drop, got {self.rejected!r}")
        for name, least in self.thresholds().items():
            if not 0 <= least <= 1:
                raise InputError(f"accept.{name}: expected a value from 0 to 1, or null, got {least}")

    def thresholds(self) -> dict[str, float]:
        """The least values that are asked for."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("attempts", "rejected")}
        return {name: float(value) for name, value in values.items() if value is not None}

    def accepts(self, record: Mapping[str, Any]) -> bool:
        """Whether a record reaches every threshold."""
        return all(record[name] >= least for name, least in self.thresholds().items())


class Candidate(NamedTuple):
    """An image that was made for a batch."""

    image: Tensor
    target: Target
    record: dict[str, Any]


def choose(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The ``count`` images of a batch: accepted ones as they come, then the others, best teacher score first; in the order they were made."""
    order = sorted(
        range(len(candidates)),
        key=lambda i: (
            not candidates[i].record["accepted"],
            0.0 if candidates[i].record["accepted"] else -candidates[i].record["teacher_score"],
            i,
        ),
    )
    return [candidates[i] for i in sorted(order[:count])]
