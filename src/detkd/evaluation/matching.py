"""Which detections find a box, by COCO's rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as overlaps
from torch import Tensor

from detkd.boxes import area_xyxy, xyxy_to_xywh
from detkd.structures import Detection

# square pixels of the original image, both ends included, as in pycocotools
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MAX_DETECTIONS = 100  # an image and class

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image: xywh (n, 4) in original pixels, labels (n,), area (n,) in square pixels.

    Of ground truth: crowd (n,), a group of objects; void (n,), crowds and what else counts neither found nor missed. Of detections:
    scores (n,). What a side does not have is zero.
    """

    xywh: Floats
    labels: Integers
    area: Floats
    crowd: Bools
    void: Bools
    scores: Floats

    def of(self, kept: Any) -> Boxes:
        """Some of them, by index or flag."""
        fields = (self.xywh, self.labels, self.area, self.crowd, self.void, self.scores)
        return Boxes(*(field[kept] for field in fields))

    def __len__(self) -> int:
        return len(self.labels)


def found_boxes(detection: Detection) -> Boxes:
    """The detections of an image, best score first, equal scores in their order."""
    xywh, labels = _arrays(detection)
    scores = detection["scores"].detach().cpu().numpy().astype(np.float64)
    no = np.zeros(len(labels), bool)
    boxes = Boxes(xywh, labels, xywh[:, 2] * xywh[:, 3], no, no, scores)
    return boxes.of(np.argsort(-scores, kind="stable"))


def true_boxes(truth: Mapping[str, Any]) -> Boxes:
    """The ground truth of an image: boxes xyxy and labels; iscrowd, ignore and area where it has them, else 0, 0 and the box's area."""
    xywh, labels = _arrays(truth)
    area = truth.get("area", area_xyxy(truth["boxes"]))
    crowd, ignore = (_flags(truth.get(key), len(labels)) for key in ("iscrowd", "ignore"))
    return Boxes(xywh, labels, _numpy(area).astype(np.float64), crowd, crowd | ignore, np.zeros(len(labels)))


@dataclass(frozen=True)
class Matches:
    """What became of the detections of one class in all images, best score first; T thresholds, A ranges of area, D detections.

    scores: (D,). image: (D,) number of the image. hit: (T, A, D), it found a box that counts. left_out: (T, A, D), it is neither hit nor
    false alarm. positives: (A, images), boxes there are to find.
    """

    scores: Floats
    image: Integers
    hit: Bools
    left_out: Bools
    positives: Integers


@dataclass(frozen=True)
class Scene:
    """Detections and ground truth of all images, and which images have which label."""

    found: list[Boxes]
    true: list[Boxes]
    images_of: Mapping[int, list[int]]

    @property
    def labels(self) -> list[int]:
        """Labels with a box that counts, in order: all others have no average precision."""
        return sorted({int(label) for boxes in self.true for label in boxes.labels[~boxes.void]})


def make_scene(detections: Sequence[Detection], truths: Sequence[Mapping[str, Any]]) -> Scene:
    """One of each an image, in the same order. Raises ValueError where the two lists differ in length."""
    if len(detections) != len(truths):
        raise ValueError(
            f"expected one ground truth an image, got {len(detections)} detections and {len(truths)} ground truths"
        )
    found, true = [found_boxes(d) for d in detections], [true_boxes(t) for t in truths]
    images_of: dict[int, list[int]] = defaultdict(list)
    for number, (mine, theirs) in enumerate(zip(found, true)):
        for label in {*mine.labels.tolist(), *theirs.labels.tolist()}:
            images_of[label].append(number)
    return Scene(found, true, images_of)


def match_class(
    scene: Scene,
    label: int,
    thresholds: Sequence[float],
    areas: Collection[tuple[float, float]] = (AREAS["all"],),
    absorbing: Collection[int] = (),
) -> Matches:
    """Match the detections of one class with its boxes.

    Args:
        thresholds: (T,) least IoU. areas: (A,) ranges of square pixels: a box outside is not looked for, a detection outside that finds
            nothing is no false alarm.
        absorbing: other labels. A box of theirs counts as one of this class to ignore: it takes one detection that finds no box of its
            own class, which is then no false alarm.

    Rules, from pycocotools: the best score first, each detection takes the box of the highest IoU that is free (of equal ones the last),
    boxes that count before boxes that do not; a crowd takes any number, and its overlap is the part of the detection inside it; at
    most 100 detections an image. A box to ignore that is no crowd (VOC's difficult objects) takes any number by IoU, as in
    :func:`detkd.evaluation.coco.score`.
    """
    limits = np.asarray([*areas], float)  # (A, 2)
    bounds = np.minimum(np.asarray(thresholds, float), 1 - 1e-10)
    parts: list[tuple[int, Floats, Bools, Bools]] = []
    positives = np.zeros((len(limits), len(scene.true)), np.int64)
    for number in scene.images_of.get(label, []):
        found, true = scene.found[number], scene.true[number]
        found = found.of(found.labels == label).of(slice(MAX_DETECTIONS))
        own = true.labels == label
        taken = own | np.isin(true.labels, [*absorbing]) if absorbing else own
        true, own = true.of(taken), own[taken]
        outside = (true.area < limits[:, :1]) | (true.area > limits[:, 1:])  # (A, G)
        ignored = outside | true.void | ~own
        positives[:, number] = (~ignored).sum(1)
        index = greedy(iou(found, true), ignored, true.void, bounds)  # (T, A, D)
        met = index >= 0
        void = met & np.take_along_axis(np.c_[ignored, np.zeros(len(limits), bool)][None], index, 2)
        off = (found.area < limits[:, :1]) | (found.area > limits[:, 1:])  # (A, D)
        parts.append((number, found.scores, met & ~void, void | (~met & off)))
    return _join(parts, (len(bounds), len(limits)), positives)


def greedy(overlap: Floats, ignored: Bools, many: Bools, thresholds: Floats) -> Integers:
    """Give each detection the free box that it overlaps most.

    Args:
        overlap: (D, G), best score first. ignored: (A, G) boxes that are taken where no other fits. many: (G,) boxes that take any number.
        thresholds: (T,) least overlap.

    Returns:
        (T, A, D) the index of the box, -1 for none.
    """
    index = np.full((len(thresholds), len(ignored), len(overlap)), -1, np.int64)
    count = overlap.shape[1]
    free = np.ones((len(thresholds), len(ignored), count), bool)
    for d in np.flatnonzero((overlap >= thresholds.min()).any(1)) if count else ():
        fits = free & (overlap[d] >= thresholds[:, None])[:, None]  # (T, A, G)
        # overlaps are at most 1: what counts comes before what is ignored
        rank = np.where(fits, overlap[d] + 2 * ~ignored, -1.0)[..., ::-1]
        best = count - 1 - rank.argmax(-1)  # (T, A); of equal ones the last
        some = fits.any(-1)
        index[..., d] = np.where(some, best, -1)
        t, a = np.nonzero(some & ~many[best])
        free[t, a, best[t, a]] = False
    return index


def iou(found: Boxes, true: Boxes) -> Floats:
    """(D, G) IoU; with a crowd the part of the detection that lies in it."""
    if not len(found) or not len(true):
        return np.zeros((len(found), len(true)))
    return np.asarray(overlaps.iou(found.xywh, true.xywh, true.crowd.astype(np.uint8)), float)


def _join(parts: Sequence[tuple[int, Floats, Bools, Bools]], shape: tuple[int, int], positives: Integers) -> Matches:
    none = np.zeros((*shape, 0), bool)
    scores = np.concatenate([np.zeros(0), *(p[1] for p in parts)])
    image = np.repeat(np.asarray([p[0] for p in parts], np.int64), [len(p[1]) for p in parts])
    order = np.argsort(-scores, kind="stable")
    hit, left_out = (np.concatenate([none, *(p[k] for p in parts)], 2)[..., order] for k in (2, 3))
    return Matches(scores[order], image[order], hit, left_out, positives)


def _arrays(boxes: Mapping[str, Any]) -> tuple[Floats, Integers]:
    xywh = _numpy(xyxy_to_xywh(boxes["boxes"])).astype(np.float64).reshape(-1, 4)
    return xywh, _numpy(boxes["labels"]).astype(np.int64)


def _flags(value: Tensor | None, count: int) -> Bools:
    return np.zeros(count, bool) if value is None else _numpy(value).astype(bool)


def _numpy(value: Tensor) -> NDArray[Any]:
    return np.asarray(value.detach().cpu().numpy())
