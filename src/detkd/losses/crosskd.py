"""CrossKD: the student's features go through the rest of the teacher's head (Wang et al., CVPR 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from detkd.detectors.capabilities import require
from detkd.detectors.modes import looking, probe
from detkd.detectors.protocol import DenseHead, Detector
from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.parts import check_weights, weighted_parts
from detkd.losses.reduce import mean_count
from detkd.losses.rois import check_classes
from detkd.losses.step import Step

_TERM = "crosskd"


def quality_focal(student: Tensor, teacher: Tensor, beta: float = 1.0) -> Tensor:
    """Quality focal loss with the teacher's probability as the target, elementwise: 0 where both agree.

    Args:
        student, teacher: logits of one shape. beta: how much pairs count less that nearly agree; below 1 the gradient of equal ones is no number.

    Returns:
        |sigmoid(s) - sigmoid(t)|^beta * binary cross-entropy of sigmoid(s) and sigmoid(t).

    Source: Generalized Focal Loss (Li et al., NeurIPS 2020), equation 2, with a soft target for every class.
    """
    target = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return (student.sigmoid() - target).abs().pow(beta) * entropy


Pair = tuple[Tensor, Tensor]


def crosskd_loss(
    teacher: Tensor,
    cls: Tensor | None = None,
    boxes: Pair | None = None,
    ctr: Pair | None = None,
    beta: float = 1.0,
    score_threshold: float = 0.3,
) -> dict[str, Tensor]:
    """Distance of cross-head predictions from the teacher's own; the parts that are asked for.

    Args:
        teacher: its class logits (B, N, C). cls: those of the student's features behind its head. boxes: (B, N, 4) each, xyxy in pixels, of the
            student's features and of the teacher. ctr: centre-ness logits (B, N, 1) each. What is the teacher's gets no gradient.
        score_threshold: a site is positive where w is higher.

    Returns:
        With w = max over classes of sigmoid(teacher) and n = max(1, positive sites of all processes):
        cls: sum of :func:`quality_focal` / n. box: sum of w (1 - GIoU) / n. ctr: sum of w :func:`quality_focal` / n.
        Float32 (float64 for float64). 0 where both agree and boxes have an area.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        wanted = full(teacher.detach())
        weight = wanted.sigmoid().amax(2)  # (B, N)
        count = mean_count((weight > score_threshold).sum().to(weight))
        parts = {}
        if cls is not None:
            parts["cls"] = quality_focal(full(cls), wanted, beta).sum() / count
        if boxes is not None:
            distance = generalized_box_iou_loss(full(boxes[0]), full(boxes[1].detach()), reduction="none")  # (B, N)
            parts["box"] = (weight * distance).sum() / count
        if ctr is not None:
            parts["ctr"] = (weight * quality_focal(full(ctr[0]), full(ctr[1].detach()), beta)[..., 0]).sum() / count
        return parts


class CrossKD(nn.Module):
    """What the student's head has made of an image half-way, finished by the teacher's head, is what the teacher says; see :func:`crosskd_loss`.

    Channels that differ go through a trained 1x1 convolution, one for each tower in use.

    Args:
        layer: of the towers behind which the student's maps are taken, from 1.
        cls_weight, box_weight: of the two parts; centre-ness has that of boxes. One may be 0: that tower of the student is not read.
        beta: see :func:`quality_focal`. score_threshold: see :func:`crosskd_loss`.

    pools_batch: False, though the sites of a batch are weighed together; needs_teacher: True. Raises InputError on values out of range.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(
        self,
        layer: int = 3,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        beta: float = 1.0,
        score_threshold: float = 0.3,
    ) -> None:
        super().__init__()
        if layer < 1:
            raise InputError(f"loss.{_TERM}.layer: expected a layer of the towers, from 1, got {layer}")
        check_weights(_TERM, cls_weight=cls_weight, box_weight=box_weight)
        if not beta >= 1:
            raise InputError(f"loss.{_TERM}.beta: expected a number from 1, got {beta}")
        if not 0 <= score_threshold < 1:
            raise InputError(f"loss.{_TERM}.score_threshold: expected a probability in [0, 1), got {score_threshold}")
        self.layer, self.beta, self.score_threshold = layer, beta, score_threshold
        self.weights = {"cls": cls_weight, "box": box_weight, "ctr": box_weight}
        self.channels: dict[str, int] = {}  # of the teacher's towers
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
        seen, known = probe(mine, mine.spec.image_size), probe(theirs, mine.spec.image_size)
        if seen.sizes != known.sizes:
            raise InputError(
                f"loss '{_TERM}': expected levels of the same sizes, found {known.sizes} of the teacher and {seen.sizes} of the student"
            )
        with looking(mine), looking(theirs):
            pairs = list(zip(("cls", "box"), mine.towers(seen, self.layer), theirs.towers(known, self.layer)))
        for branch, sources, targets in pairs:
            source, target = sources[0].shape[1], targets[0].shape[1]
            self.channels[branch] = target
            if self.weights[branch]:
                same = source == target
                self.connectors[branch] = nn.Identity() if same else nn.Conv2d(source, target, 1).to(sources[0])

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{cls, box}, of a head with centre-ness also {ctr}: float32 scalars times their weights; a part of weight 0 is left out."""
        student, teacher, seen, known = step.student, step.teacher, step.student_prediction, step.teacher_prediction
        assert isinstance(student, DenseHead)
        assert isinstance(teacher, DenseHead)
        assert seen is not None
        assert known is not None
        towers = zip(("cls", "box"), student.towers(seen, self.layer))
        cls, box = ([self._connect(branch, m) for m in maps] for branch, maps in towers)
        crossed = teacher.head_from(cls, box, self.layer, seen.image_size)
        boxes = ctr = None
        if self.weights["box"]:
            boxes = teacher.boxes(crossed, differentiable=True), teacher.boxes(known, differentiable=True)
            ctr = (crossed.raw["ctr"], known.raw["ctr"]) if "ctr" in crossed.raw else None
        found = crosskd_loss(
            known.raw["cls"], crossed.raw["cls"] if self.weights["cls"] else None, boxes, ctr, self.beta, self.score_threshold
        )
        return weighted_parts({name: (self.weights[name], part) for name, part in found.items()})

    def _connect(self, branch: str, maps: Tensor) -> Tensor:
        """The student's maps (B, C, H, W) of a tower in the teacher's channels; of a tower that is not in use zeros, without gradient."""
        if branch in self.connectors:
            connected: Tensor = self.connectors[branch](maps)
            return connected
        return maps.new_zeros(len(maps), self.channels[branch], *maps.shape[2:])
