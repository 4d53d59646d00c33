"""What a two-stage teacher and its student say of the same boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkd.boxes import iou_xyxy
from detkd.detectors.capabilities import detectors_with, require
from detkd.detectors.protocol import DenseHead, Detector, TwoStage
from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.structures import Prediction, RoI, Target


class PairedRoIs(NamedTuple):
    """The same boxes read by both RoI heads of one stage.

    boxes: (r, 4) xyxy in pixels an image, R in all. teacher: without gradient. student: with it.
    """

    boxes: list[Tensor]
    teacher: RoI
    student: RoI


def check_pair(student: Detector | None, teacher: Detector | None, term: str, same_classes: bool = True) -> None:
    """Raises InputError unless both are two-stage and, where the term compares classes, name the same ones in the same order."""
    theirs, mine = require(teacher, TwoStage, term, "teacher"), require(student, TwoStage, term, "student")
    if same_classes:
        check_classes(mine, theirs, term)


def check_classes(student: Detector, teacher: Detector, term: str) -> None:
    """Raises InputError unless both name the same classes in the same order."""
    if difference := teacher.spec.class_difference(student.spec):
        raise InputError(f"loss '{term}': expected the same classes, found {difference}")


def check_families(
    student: Detector | None, teacher: Detector | None, term: str, same_classes: bool = True, dense_teacher: bool = False
) -> None:
    """Raises InputError unless the teacher is two-stage, the student too or dense, and, where compared, classes are the same.

    dense_teacher: of a dense student the teacher may be dense as well.
    """
    if student is not None and not isinstance(student, TwoStage | DenseHead):
        names = [*detectors_with(TwoStage), *detectors_with(DenseHead)]
        raise InputError(
            f"loss '{term}': expected a student with a RoI head or with a dense head that can be read, found a "
            f"{type(student).__name__}. Detectors that have one: {', '.join(names)}"
        )
    if student is None or isinstance(student, TwoStage):
        check_pair(student, teacher, term, same_classes)
        return
    theirs: Detector
    if dense_teacher and isinstance(teacher, DenseHead):
        theirs = teacher
    else:
        theirs = require(teacher, TwoStage, term, "teacher")
    if same_classes:
        check_classes(student, theirs, term)


def check_per_image(per_image: int, term: str) -> None:
    """Raises InputError unless at least one proposal an image is asked for."""
    if per_image < 1:
        raise InputError(f"loss.{term}.per_image: expected at least 1 proposal an image, got {per_image}")


def paired_rois(step: Step, per_image: int) -> list[PairedRoIs]:
    """Both RoI heads on the best ``per_image`` of ``step.proposals``, each from its own features, stage by stage; made once a step.

    Of two cascades a later stage looks at the boxes as the teacher's stages before have moved them; where one has more stages than the
    other, the last ones have no pair. The student's norms in its RoI head learn nothing from it.
    """
    key = ("paired_rois", per_image)
    if key not in step.shared:
        teacher, student = step.teacher, step.student
        assert isinstance(teacher, TwoStage)
        assert isinstance(student, TwoStage)
        assert step.teacher_prediction is not None
        assert step.student_prediction is not None
        boxes = [of_image[:per_image] for of_image in step.proposals]
        pairs: list[PairedRoIs] = []
        for stage in range(min(teacher.stages, student.stages)):
            with torch.no_grad():
                if stage > 0:
                    boxes = teacher.refine(step.teacher_prediction, boxes, pairs[-1].teacher, stage - 1)
                theirs = teacher.roi_head(teacher.pool(step.teacher_prediction, boxes), stage)
            pairs.append(PairedRoIs(boxes, theirs, student.roi_head(student.pool(step.student_prediction, boxes), stage)))
        step.shared[key] = pairs
    paired: list[PairedRoIs] = step.shared[key]
    return paired


def mean_over_stages(values: Sequence[Tensor]) -> Tensor:
    """The mean of one value a stage, so that a term weighs the same for a cascade. Source: ours, the papers do not say."""
    return torch.stack(list(values)).mean(0)


class SiteRoIs(NamedTuple):
    """Boxes of a dense student that serve as RoIs: (r, 4) an image, and the sites (r,) they come from."""

    boxes: list[Tensor]
    sites: list[Tensor]


def student_rois(step: Step, per_image: int, iou: float, score_threshold: float) -> SiteRoIs:
    """Boxes of the step's dense student, chosen by :func:`select_sites`; made once a step.

    score_threshold: of the teacher's detections that stand for objects where the step has no targets.
    """
    key = ("student_rois", per_image, iou, score_threshold)
    if key not in step.shared:
        student, prediction = step.student, step.student_prediction
        assert isinstance(student, DenseHead)
        assert prediction is not None
        boxes = student.boxes(prediction)  # (B, N, 4)
        best = prediction.raw["cls"].detach().amax(2)
        sites = select_sites(boxes, best, step.objects(score_threshold), per_image, iou)
        step.shared[key] = SiteRoIs([of_image[index] for of_image, index in zip(boxes, sites)], sites)
    rois: SiteRoIs = step.shared[key]
    return rois


def at_strides(maps: Sequence[Tensor], of: Prediction, like: Prediction, term: str) -> list[Tensor]:
    """Of the maps of a dense detector, one a level of its prediction ``of``, those at the strides of another prediction ``like``.

    Raises InputError where there is none of that stride, or one of another size.
    """
    by_stride = dict(zip(of.strides, maps, strict=True))
    found = [by_stride.get(stride) for stride in like.strides]
    sizes = [None if m is None else tuple(m.shape[-2:]) for m in found]
    if sizes != [(height, width) for height, width, _ in like.sizes]:
        raise InputError(
            f"loss '{term}': expected a teacher whose head has the student's levels, of strides {list(like.strides)}, found "
            f"{list(of.strides)} on images of {like.image_size}"
        )
    return [m for m in found if m is not None]


def at_sites(maps: Sequence[Tensor], sizes: Sequence[tuple[int, int, int]], sites: Sequence[Tensor]) -> Tensor:
    """(R, C): what maps (B, C, H, W) a level, fine first, hold at sites (r,) an image, R in all.

    sizes: (height, width, anchors) of each level; a site is one anchor of one cell, in the order of ``Prediction.raw``.
    """
    cells, before = [], 0
    for height, width, anchors in sizes:
        of_level = torch.arange(before, before + height * width, device=maps[0].device)
        cells.append(of_level.repeat_interleave(anchors))
        before += height * width
    cell_of = torch.cat(cells)  # (N,)
    flat = torch.cat([m.flatten(2) for m in maps], dim=2)  # (B, C, cells)
    return torch.cat([of_image[:, cell_of[index]].T for of_image, index in zip(flat, sites, strict=True)])


def on_objects(boxes: Sequence[Tensor], targets: Sequence[Target], iou: float) -> Tensor:
    """(R,) bool: which boxes (r, 4) an image have an IoU of at least ``iou`` with a target of their image."""
    found = []
    for of_image, target in zip(boxes, targets, strict=True):
        truth = target["boxes"].to(of_image)
        # a column of zeros stands for "no object", so that images without targets need no case of their own
        overlap = torch.cat([iou_xyxy(of_image, truth), of_image.new_zeros(len(of_image), 1)], dim=1)  # (r, n + 1)
        found.append(overlap.nan_to_num(0).amax(1) >= iou)
    return torch.cat(found)


def select_sites(boxes: Tensor, scores: Tensor, targets: Sequence[Target], per_image: int, iou: float) -> list[Tensor]:
    """Which boxes of a dense detector serve as RoIs: positives, and three times as many negatives, best scores first.

    Args:
        boxes: (B, N, 4) xyxy in pixels. scores: (B, N). targets: one an image. per_image: at most; a quarter of them positive.
        iou: least overlap with an object that makes a box positive.

    Returns:
        indices (r,) an image, positives first; an image without positives gets three negatives. Boxes without area are left out.

    Source: G-DetKD takes the boxes of a dense student with 1:3 positives; it does not say how they are drawn. Taking the best scores
    draws no random numbers.
    """
    chosen = []
    solid = (boxes[..., 2:] > boxes[..., :2]).all(2)  # (B, N)
    positive = on_objects(list(boxes), targets, iou).view_as(solid)
    wanted, others = positive & solid, ~positive & solid  # (B, N)
    # the one wait for the device
    counts = torch.stack([wanted.sum(1), others.sum(1)], dim=1).tolist()
    least = torch.finfo(torch.float32).min
    for objects, background, score, (positives, negatives) in zip(wanted, others, scores.detach().float(), counts):
        first = min(positives, max(per_image // 4, 1))
        second = min(negatives, 3 * max(first, 1), per_image - first)
        chosen.append(
            torch.cat([score.masked_fill(~mask, least).topk(n).indices for mask, n in ((objects, first), (background, second))])
        )
    return chosen
