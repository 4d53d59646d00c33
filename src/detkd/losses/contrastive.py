"""G-DetKD's contrastive knowledge distillation: the teacher's feature of a box among those of others (Yao et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkd.detectors.modes import looking, probe
from detkd.detectors.protocol import DenseHead, Detector, TwoStage
from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.gather import gather_rows
from detkd.losses.info_nce import Candidates, InfoNCE, info_nce
from detkd.losses.queue import FeatureQueue
from detkd.losses.reduce import rank
from detkd.losses.rois import at_sites, at_strides, check_families, check_per_image, mean_over_stages, paired_rois, student_rois
from detkd.losses.step import Step

Head = Literal["linear", "mlp"]
Branch = Literal["cls", "box", "sum"]
_TERM = "contrastive"


class Embedded(NamedTuple):
    """The same R boxes as both sides embed them: boxes (r, 4) an image, (R, D_s) with gradient, (R, D_t) without."""

    boxes: list[Tensor]
    student: Tensor
    teacher: Tensor


class Contrastive(nn.Module):
    """The student's feature of a box is nearer to the teacher's of that box than to those of others; see :func:`~detkd.losses.info_nce.info_nce`.

    The teacher's feature is the last fully connected layer of its RoI head. Of a two-stage student it is the same of its own, on the
    teacher's proposals, stage by stage; of a dense student the last layer of a tower at the site of a box of its own. A dense teacher of a
    dense student gives the last layer of the same tower in the same cell of the level of that stride. Each side has a trained
    projection, and each stage a queue of projected teacher features, of all processes, which is filled in training after the loss is taken.
    In eval mode the batch alone gives negatives, so that losses on held-out images compare.

    Args:
        gamma: temperature of the critic exp(cos / gamma). width: of the projections. queue: features remembered.
        iou: boxes of one image that overlap by more are no negatives of each other.
        head: "linear" or "mlp", two layers with a ReLU between. shared: one projection for both sides, whose widths must agree.
        branch: dense students alone: the tower that is read: "cls", "box", or the "sum" of both.
        per_image: boxes an image, best first.
        positive_iou, score_threshold: dense students alone: least overlap of a positive box, and of the teacher's detections that stand for
            objects where a step has no targets.

    pools_batch: True, boxes of a batch are each other's negatives; needs_teacher: True. Raises InputError on values out of range.
    """

    pools_batch = True
    needs_teacher = True

    def __init__(
        self,
        gamma: float = 0.07,
        width: int = 128,
        queue: int = 80 * 1024,
        iou: float = 0.5,
        head: Head = "linear",
        shared: bool = False,
        branch: Branch = "cls",
        per_image: int = 512,
        positive_iou: float = 0.5,
        score_threshold: float = 0.3,
    ) -> None:
        super().__init__()
        if not gamma > 0:
            raise InputError(f"loss.{_TERM}.gamma: expected a positive number, got {gamma}")
        for name, count in (("width", width), ("queue", queue)):
            if count < 1:
                raise InputError(f"loss.{_TERM}.{name}: expected at least 1, got {count}")
        for name, value in (("iou", iou), ("positive_iou", positive_iou)):
            if not 0 < value <= 1:
                raise InputError(f"loss.{_TERM}.{name}: expected a number in (0, 1], got {value}")
        for name, choice, known in (("head", head, get_args(Head)), ("branch", branch, get_args(Branch))):
            if choice not in known:
                raise InputError(f"loss.{_TERM}.{name}: expected one of {', '.join(known)}, got {choice!r}")
        check_per_image(per_image, _TERM)
        self.gamma, self.width, self.size, self.iou = gamma, width, queue, iou
        self.head, self.shared, self.branch, self.per_image = head, shared, branch, per_image
        self.positive_iou, self.score_threshold = positive_iou, score_threshold
        self.student_projections, self.teacher_projections = nn.ModuleList(), nn.ModuleList()
        self.queues = nn.ModuleList()

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Build projections and empty queues, one a stage, from one blank image, which leaves both detectors as they were.

        Raises InputError unless the teacher is two-stage and the student too or dense, or both are dense with levels of the same strides;
        and where ``shared`` meets widths that differ. Classes may differ.
        """
        check_families(student, teacher, _TERM, same_classes=False, dense_teacher=True)
        assert student is not None
        assert teacher is not None
        size = student.spec.image_size
        blank = next(student.parameters()).new_zeros(1, 3, *size)
        with looking(student), looking(teacher):
            stages = self._embeddings(Step(blank, None, teacher, probe(teacher, size), student, probe(student, size)))
        for embedded in stages:
            mine, theirs = embedded.student.shape[1], embedded.teacher.shape[1]
            if self.shared and mine != theirs:
                raise InputError(
                    f"loss.{_TERM}.shared: expected features of the same width, found {mine} of the student and {theirs} of the teacher; "
                    f"loss.{_TERM}.shared=false gives each side a projection of its own"
                )
            self.student_projections.append(self._projection(mine).to(blank))
            if not self.shared:
                self.teacher_projections.append(self._projection(theirs).to(blank))
            self.queues.append(FeatureQueue(self.size, self.width).to(blank))

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "contrastive": float32 scalar, a mean over stages. Records "bound", see :class:`~detkd.losses.info_nce.InfoNCE`."""
        found = [self._stage(stage, embedded) for stage, embedded in enumerate(self._embeddings(step))]
        step.record("bound", mean_over_stages([of_stage.bound for of_stage in found]).float())
        return {"contrastive": mean_over_stages([of_stage.loss for of_stage in found]).float()}

    def _stage(self, stage: int, embedded: Embedded) -> InfoNCE:
        mine, theirs = (
            self.student_projections[stage],
            (self.student_projections if self.shared else self.teacher_projections)[stage],
        )
        queue = cast(FeatureQueue, self.queues[stage])
        images = torch.cat([b.new_full((len(b),), i, dtype=torch.int64) for i, b in enumerate(embedded.boxes)])
        # What is gathered is the teacher's own feature: each process projects those of all, so that its projection gets the whole gradient.
        (features, boxes, images), first = gather_rows(embedded.teacher, torch.cat(embedded.boxes), images + _first_image())
        with torch.autocast(features.device.type, enabled=False):
            projected = theirs(features)  # (N, D)
            student = mine(full(embedded.student))  # (R, D)
            past = queue.read() if self.training else queue.rows[:0]
            found = info_nce(student, projected, past, Candidates(boxes, images, first), self.gamma, self.iou)
            if self.training:
                queue.put(F.normalize(projected.detach(), dim=1))
        return found

    def _embeddings(self, step: Step) -> list[Embedded]:
        """Both sides' features of the same boxes, one a stage."""
        if isinstance(step.student, TwoStage):
            stages = paired_rois(step, self.per_image)
            return [Embedded(rois.boxes, rois.student.embedding, full(rois.teacher.embedding.detach())) for rois in stages]
        student, teacher, mine, theirs = step.student, step.teacher, step.student_prediction, step.teacher_prediction
        assert isinstance(student, DenseHead)
        assert mine is not None
        assert theirs is not None
        boxes, sites = student_rois(step, self.per_image, self.positive_iou, self.score_threshold)
        with torch.no_grad():
            if isinstance(teacher, TwoStage):
                seen = teacher.roi_head(teacher.pool(theirs, boxes)).embedding
            else:
                assert isinstance(teacher, DenseHead)
                known = at_strides(_branch(teacher.towers(theirs), self.branch), theirs, mine, _TERM)
                seen = at_sites(known, mine.sizes, sites)
        maps = _branch(student.towers(mine), self.branch)
        return [Embedded(boxes, at_sites(maps, mine.sizes, sites), full(seen))]

    def _projection(self, width: int) -> nn.Module:
        if self.head == "linear":
            return nn.Linear(width, self.width)
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.width))


def _branch(towers: tuple[list[Tensor], list[Tensor]], branch: Branch) -> Sequence[Tensor]:
    cls, box = towers
    return {"cls": cls, "box": box}[branch] if branch != "sum" else [c + b for c, b in zip(cls, box)]


def _first_image() -> int:
    """What makes the numbers of this process's images differ from those of the others."""
    return rank() << 32
