"""Which detections find a box, by COCO's rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
class Flat:
    """Boxes of many images, and (n,) number of the image of each, ascending."""

    boxes: Boxes
    image: Integers


@dataclass(frozen=True)
class Scene:
    """Detections and ground truth of all images, one of each an image."""

    found: list[Boxes]
    true: list[Boxes]

    @cached_property
    def flat(self) -> tuple[Flat, Flat]:
        """Detections and ground truth of all images, one image after the other."""
        return _flat(self.found), _flat(self.true)

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
    return Scene([found_boxes(d) for d in detections], [true_boxes(t) for t in truths])


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
    every, truth = scene.flat
    found, image = _best_of_each(every, label)
    own = truth.boxes.labels == label
    taken = own | np.isin(truth.boxes.labels, [*absorbing])
    true, home, own = truth.boxes.of(taken), truth.image[taken], own[taken]
    outside = (true.area < limits[:, :1]) | (true.area > limits[:, 1:])  # (A, G)
    ignored = outside | true.void | ~own
    positives = np.stack([np.bincount(home[~row], minlength=len(scene.true)) for row in ignored])
    d, g = pairs(image, home)
    overlap = iou_pairs(found.of(d), true.of(g))
    index = greedy_pairs(Pairs(d, g, overlap), image, ignored, true.void, bounds)  # (T, A, D)
    met = index >= 0
    void = met & np.take_along_axis(np.c_[ignored, np.zeros(len(limits), bool)][None], index, 2)
    off = (found.area < limits[:, :1]) | (found.area > limits[:, 1:])  # (A, D)
    order = np.argsort(-found.scores, kind="stable")
    hit, left_out = met & ~void, void | (~met & off)
    return Matches(found.scores[order], image[order], hit[..., order], left_out[..., order], positives)


def greedy(overlap: Floats, ignored: Bools, many: Bools, thresholds: Floats) -> Integers:
    """Give each detection the free box that it overlaps most.

    Args:
        overlap: (D, G), best score first. ignored: (A, G) boxes that are taken where no other fits. many: (G,) boxes that take any number.
        thresholds: (T,) least overlap.

    Returns:
        (T, A, D) the index of the box, -1 for none.
    """
    d, g = np.nonzero(overlap >= thresholds.min())
    pairs_ = Pairs(d, g, overlap[d, g])
    return greedy_pairs(pairs_, np.zeros(len(overlap), np.int64), ignored, many, thresholds)


@dataclass(frozen=True)
class Pairs:
    """Detections and boxes of one image each, and their overlap: three times (P,), by detection, then by box."""

    detection: Integers
    box: Integers
    overlap: Floats


def pairs(image: Integers, home: Integers) -> tuple[Integers, Integers]:
    """Each detection with each box of its image: two times (P,). image: (D,), home: (G,), both ascending."""
    start = np.searchsorted(home, image, side="left")
    count = np.searchsorted(home, image, side="right") - start
    d = np.repeat(np.arange(len(image)), count)
    return d, np.arange(len(d)) - np.repeat(np.cumsum(count) - count - start, count)


def greedy_pairs(pairs: Pairs, group: Integers, ignored: Bools, many: Bools, thresholds: Floats) -> Integers:
    """:func:`greedy` in many groups at once, like images: the best detections of all groups choose first, then the second, and so on.

    Args:
        group: (D,) of each detection, ascending, best score first in each; a box is in pairs of one group only. ignored: (A, G). many: (G,).
        thresholds: (T,) least overlap.

    Returns:
        (T, A, D) the index of the box, -1 for none.
    """
    kept = pairs.overlap >= thresholds.min()
    d, g, overlap = pairs.detection[kept], pairs.box[kept], pairs.overlap[kept]
    index = np.full((len(group), len(thresholds), len(ignored)), -1, np.int64)
    free = np.ones((len(many), len(thresholds), len(ignored)), bool)
    bonus = 2.0 * ~ignored.T  # overlaps are at most 1: what counts comes before what is ignored
    some = np.unique(d)  # of those that overlap nothing, none has to choose
    turn = (np.arange(len(some)) - np.searchsorted(group[some], group[some]))[np.searchsorted(some, d)]
    order = np.argsort(turn, kind="stable")
    for now in np.split(order, np.flatnonzero(np.diff(turn[order])) + 1) if len(order) else ():
        box, size = g[now], overlap[now]
        first = np.flatnonzero(np.diff(d[now], prepend=-1))  # of the pairs of each detection
        fits = free[box] & (size[:, None] >= thresholds)[..., None]  # (p, T, A)
        rank = np.where(fits, size[:, None, None] + bonus[box][:, None], -1.0)
        best = np.maximum.reduceat(rank, first, axis=0)  # (d, T, A)
        same = rank == np.repeat(best, np.diff(first, append=len(now)), axis=0)
        last = np.maximum.reduceat(np.where(same, np.arange(len(now))[:, None, None], -1), first, axis=0)
        chosen = np.where(best >= 0, box[last], -1)
        index[d[now][first]] = chosen
        at, t, a = np.nonzero((chosen >= 0) & ~many[chosen])
        free[chosen[at, t, a], t, a] = False
    return index.transpose(1, 2, 0)


def iou(found: Boxes, true: Boxes) -> Floats:
    """(D, G) IoU; with a crowd the part of the detection that lies in it."""
    if not len(found) or not len(true):
        return np.zeros((len(found), len(true)))
    return np.asarray(overlaps.iou(found.xywh, true.xywh, true.crowd.astype(np.uint8)), float)


def iou_pairs(found: Boxes, true: Boxes) -> Floats:
    """(P,) :func:`iou` of the first with the first, and so on, to the last digit."""
    low = np.maximum(found.xywh[:, :2], true.xywh[:, :2])
    high = np.minimum(found.xywh[:, :2] + found.xywh[:, 2:], true.xywh[:, :2] + true.xywh[:, 2:])
    both = np.maximum(high - low, 0).prod(1)
    mine, theirs = (of.xywh[:, 2] * of.xywh[:, 3] for of in (found, true))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(both > 0, both / np.where(true.crowd, mine, mine + theirs - both), 0.0)


def _flat(parts: Sequence[Boxes]) -> Flat:
    fields = ([getattr(boxes, field.name) for boxes in parts] for field in dataclasses.fields(Boxes))
    image = np.repeat(np.arange(len(parts)), [len(boxes) for boxes in parts])
    return Flat(Boxes(*map(np.concatenate, fields)), image)


def _best_of_each(every: Flat, label: int) -> tuple[Boxes, Integers]:
    """The best ``MAX_DETECTIONS`` of a class in each image, and the image of each."""
    at = np.flatnonzero(every.boxes.labels == label)
    image = every.image[at]
    at = at[np.arange(len(at)) - np.searchsorted(image, image) < MAX_DETECTIONS]
    return every.boxes.of(at), every.image[at]


def _arrays(boxes: Mapping[str, Any]) -> tuple[Floats, Integers]:
    xywh = _numpy(xyxy_to_xywh(boxes["boxes"])).astype(np.float64).reshape(-1, 4)
    return xywh, _numpy(boxes["labels"]).astype(np.int64)


def _flags(value: Tensor | None, count: int) -> Bools:
    return np.zeros(count, bool) if value is None else _numpy(value).astype(bool)


def _numpy(value: Tensor) -> NDArray[Any]:
    return np.asarray(value.detach().cpu().numpy())
