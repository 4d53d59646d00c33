"""CrossKD: the student's features go through the rest of the teacher's head (Wang et al., CVPR 2024)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from detkd.detectors.capabilities import require
from detkd.detectors.modes import looking
from detkd.detectors.protocol import DenseHead, Detector
from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.reduce import mean_count
from detkd.losses.rois import check_classes
from detkd.losses.step import Step

_TERM = "crosskd"


def quality_focal(student: Tensor, teacher: Tensor, beta: float = 1.0) -> Tensor:
    """Quality focal loss with the teacher's probability as the target, elementwise: 0 where both agree.

    Args:
        student, teacher: logits of one shape. beta: how much pairs count less that nearly agree.

    Returns:
        |sigmoid(s) - sigmoid(t)|^beta * binary cross-entropy of sigmoid(s) and sigmoid(t).

    Source: Generalized Focal Loss (Li et al., NeurIPS 2020), equation 2, with a soft target for every class.
    """
    target = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return (student.sigmoid() - target).abs().pow(beta) * entropy


class CrossKDLoss(NamedTuple):
    """cls, box, ctr: scalars; ctr is None where the head has no centre-ness."""

    cls: Tensor
    box: Tensor
    ctr: Tensor | None


def crosskd_loss(
    cls: tuple[Tensor, Tensor],
    boxes: tuple[Tensor, Tensor],
    ctr: tuple[Tensor, Tensor] | None = None,
    beta: float = 1.0,
) -> CrossKDLoss:
    """Distance of cross-head predictions from the teacher's own.

    Args:
        cls: class logits (B, N, C) of the student's features behind the teacher's head, and of the teacher. boxes: (B, N, 4) each, xyxy in
            pixels. ctr: centre-ness logits (B, N, 1) each. The teacher's, the second of each, get no gradient.

    Returns:
        With w = max over classes of sigmoid(teacher's logits) and n = sum of w over sites, batch and processes, at least 1:
        cls: sum of :func:`quality_focal` / n. box: sum of w (1 - GIoU) / n. ctr: sum of w :func:`quality_focal` / n.
        Float32 (float64 for float64). 0 where both agree and boxes have an area.
    """
    with torch.autocast(cls[0].device.type, enabled=False):
        said, wanted = full(cls[0]), full(cls[1].detach())
        weight = wanted.sigmoid().amax(2)  # (B, N)
        count = mean_count(weight.sum())
        distance = generalized_box_iou_loss(full(boxes[0]), full(boxes[1].detach()), reduction="none")  # (B, N)
        centre = None
        if ctr is not None:
            centre = (weight * quality_focal(full(ctr[0]), full(ctr[1].detach()), beta)[..., 0]).sum() / count
        return CrossKDLoss(quality_focal(said, wanted, beta).sum() / count, (weight * distance).sum() / count, centre)


class CrossKD(nn.Module):
    """What the student's head has made of an image half-way, finished by the teacher's head, is what the teacher says; see :func:`crosskd_loss`.

    Channels that differ go through a trained 1x1 convolution, one a tower.

    Args:
        layer: of the towers behind which the student's maps are taken, from 1.
        cls_weight, box_weight: of the two parts; centre-ness has that of boxes. One may be 0.
        beta: see :func:`quality_focal`.

    pools_batch: False, though the sites of a batch are weighed together; needs_teacher: True. Raises InputError on values out of range.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, layer: int = 3, cls_weight: float = 1.0, box_weight: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        if layer < 1:
            raise InputError(f"loss.{_TERM}.layer: expected a layer of the towers, from 1, got {layer}")
        if cls_weight < 0 or box_weight < 0 or cls_weight == box_weight == 0:
            raise InputError(
                f"loss.{_TERM}: expected cls_weight and box_weight >= 0, one of them positive, got {cls_weight} and {box_weight}"
            )
        if not beta > 0:
            raise InputError(f"loss.{_TERM}.beta: expected a positive number, got {beta}")
        self.layer, self.cls_weight, self.box_weight, self.beta = layer, cls_weight, box_weight, beta
        self.connectors = nn.ModuleDict()

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Build the connectors from one blank image, which leaves both detectors as they were.

        Raises InputError unless both have a dense head of one kind, classes and levels are the same, and there is such a layer.
        """
        theirs, mine = require(teacher, DenseHead, _TERM, "teacher"), require(student, DenseHead, _TERM, "student")
        if type(mine) is not type(theirs):
            raise InputError(
                f"loss '{_TERM}': expected two detectors of one kind, found {type(theirs).__name__} and {type(mine).__name__}"
            )
        check_classes(mine, theirs, _TERM)
        layers = min(mine.tower_layers, theirs.tower_layers)
        if self.layer > layers:
            raise InputError(f"loss.{_TERM}.layer: expected a layer of the towers, from 1 to {layers}, got {self.layer}")
        blank = next(mine.parameters()).new_zeros(1, 3, *mine.spec.image_size)
        with looking(mine), looking(theirs):
            seen, known = mine(blank), theirs(blank)
            pairs = zip(("cls", "box"), mine.towers(seen, self.layer), theirs.towers(known, self.layer))
            channels = {branch: (a[0].shape[1], b[0].shape[1]) for branch, a, b in pairs}
        if seen.sizes != known.sizes:
            raise InputError(
                f"loss '{_TERM}': expected levels of the same sizes, found {known.sizes} of the teacher and {seen.sizes} of the student"
            )
        for branch, (source, target) in channels.items():
            self.connectors[branch] = nn.Identity() if source == target else nn.Conv2d(source, target, 1).to(blank)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{cls, box}, of a head with centre-ness also {ctr}: float32 scalars times their weights; a part of weight 0 is left out."""
        student, teacher, seen, known = step.student, step.teacher, step.student_prediction, step.teacher_prediction
        assert isinstance(student, DenseHead)
        assert isinstance(teacher, DenseHead)
        assert seen is not None
        assert known is not None
        towers = zip(("cls", "box"), student.towers(seen, self.layer))
        cls, box = ([self.connectors[branch](m) for m in maps] for branch, maps in towers)
        crossed = teacher.head_from(cls, box, self.layer, seen.image_size)
        found = crosskd_loss(
            (crossed.raw["cls"], known.raw["cls"]),
            (teacher.boxes(crossed, differentiable=True), teacher.boxes(known, differentiable=True)),
            (crossed.raw["ctr"], known.raw["ctr"]) if "ctr" in crossed.raw else None,
            self.beta,
        )
        parts = {"cls": (self.cls_weight, found.cls), "box": (self.box_weight, found.box), "ctr": (self.box_weight, found.ctr)}
        return {name: (weight * part).float() for name, (weight, part) in parts.items() if weight and part is not None}
