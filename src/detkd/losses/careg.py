"""G-DetKD's class-aware imitation of box corrections (Yao et al., ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.reduce import mean_count
from detkd.losses.rois import PairedRoIs, check_pair, check_per_image, mean_over_stages, on_objects, paired_rois
from detkd.losses.step import Step

_TERM = "careg"


def careg_loss(student: Tensor, teacher: Tensor, teacher_logits: Tensor, positive: Tensor, class_aware: bool = True) -> Tensor:
    """L1 distance of box corrections over positive proposals, weighted by the classes that the teacher sees.

    Args:
        student, teacher: (R, C, 4) corrections by class; the teacher gets no gradient. teacher_logits: (R, 1 + C), background first.
        positive: (R,) bool, the proposals that count.
        class_aware: |sum_c p_c (teacher_c - student_c)| with the teacher's softmax p; otherwise the mean over classes of |teacher_c - student_c|.

    Returns:
        scalar, float32 (float64 for float64): summed over the four corrections, mean over the positives of all processes; 0 without any.

    Source: L_reg of G-DetKD, 1/N sum_i |sum_c p_t^c (reg_t^(c,i) - reg_s^(c,i))| over foreground classes. p is not normalised again
    after background is left out. What the class-agnostic distance does with corrections by class is ours.
    """
    with torch.autocast(student.device.type, enabled=False):
        difference = full(teacher.detach()) - full(student)  # (R, C, 4)
        if class_aware:
            seen = full(teacher_logits.detach()).softmax(1)[:, 1:, None]  # (R, C, 1)
            distance = (seen * difference).sum(1).abs()  # (R, 4)
        else:
            distance = difference.abs().mean(1)  # (R, 4)
        counted = positive.to(difference)
        return (counted * distance.sum(1)).sum() / mean_count(counted.sum())


class ClassAwareRegression(nn.Module):
    """The student's RoI head corrects the teacher's proposals as the teacher's does; see :func:`careg_loss`.

    Args:
        class_aware: as there. iou: least overlap with an object that makes a proposal count.
        score_threshold: of the teacher's detections that stand for objects where a step has no targets.
        per_image: how many of the teacher's proposals, best first.

    pools_batch: False, though the proposals of a batch are counted together; needs_teacher: True. Raises InputError on values out of range.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, class_aware: bool = True, iou: float = 0.5, score_threshold: float = 0.3, per_image: int = 512) -> None:
        super().__init__()
        if not 0 < iou <= 1:
            raise InputError(f"loss.{_TERM}.iou: expected a number in (0, 1], got {iou}")
        check_per_image(per_image, _TERM)
        self.class_aware, self.iou, self.score_threshold, self.per_image = class_aware, iou, score_threshold, per_image

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Nothing to build. Raises InputError unless both are two-stage and of the same classes."""
        check_pair(student, teacher, _TERM)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "careg": float32 scalar."""
        return {"careg": mean_over_stages([self._stage(step, rois) for rois in paired_rois(step, self.per_image)]).float()}

    def _stage(self, step: Step, rois: PairedRoIs) -> Tensor:
        positive = on_objects(rois.boxes, step.objects(self.score_threshold), self.iou)
        return careg_loss(rois.student.deltas, rois.teacher.deltas, rois.teacher.logits, positive, self.class_aware)
