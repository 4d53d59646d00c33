"""G-DetKD's imitation of class predictions, within a family and from a two-stage teacher to a dense student (Yao et al., ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector, TwoStage
from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.reduce import mean_count
from detkd.losses.rois import check_families, check_per_image, mean_over_stages, paired_rois, student_rois
from detkd.losses.step import Step

_TERM = "prediction"


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence from the teacher's softmax to the student's, mean over boxes, times temperature^2.

    Args:
        student, teacher: (R, K) logits; the teacher gets no gradient.

    Returns:
        scalar, float32 (float64 for float64); R counts the boxes of all processes, and 0 boxes give 0. Its gradient is that of the soft
        cross-entropy, from which it differs by the teacher's entropy.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_t = (full(teacher.detach()) / temperature).log_softmax(1)
        log_s = (full(student) / temperature).log_softmax(1)
        divergence = (log_t.exp() * (log_t - log_s)).sum() * temperature**2
        return divergence / mean_count(divergence.new_full((), len(student)))


def softmax_to_sigmoid(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of a softmax teacher and a student with a logit a class and none for background, mean over boxes.

    Args:
        student: (R, C) logits of a sigmoid head. teacher: (R, 1 + C) logits, background first, without gradient.

    Returns:
        -1/R sum_i sum_c p_t(c) log P_s(c), with P_s = softmax(z) / max softmax(z) over z = (0, student), of which background is left out;
        scalar, float32 (float64 for float64). R counts the boxes of all processes, and 0 boxes give 0.

    Source: prediction imitation across families of G-DetKD. A dense head has no background logit: zero stands for it. log P_s is
    z - max z, which needs no clamp.
    """
    with torch.autocast(student.device.type, enabled=False):
        logits = full(student)
        highest = logits.amax(1, keepdim=True).clamp(min=0)  # the zero is background's
        log_s = logits - highest  # (R, C)
        seen = full(teacher.detach()).softmax(1)[:, 1:]
        return -(seen * log_s).sum() / mean_count(logits.new_full((), len(logits)))


class PredictionImitation(nn.Module):
    """The student classifies boxes as the teacher's RoI head does.

    A two-stage student: :func:`softmax_kl` on the teacher's proposals. A dense student: :func:`softmax_to_sigmoid` on boxes of the student.

    Args:
        temperature: of :func:`softmax_kl`. per_image: boxes an image.
        iou, score_threshold: dense students alone: least overlap of a positive box, and of the teacher's detections that stand for objects
            where a step has no targets.

    pools_batch: False, though the boxes of a batch are counted together; needs_teacher: True. Raises InputError on values out of range.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, temperature: float = 1.0, per_image: int = 512, iou: float = 0.5, score_threshold: float = 0.3) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(f"loss.{_TERM}.temperature: expected a positive number, got {temperature}")
        if not 0 < iou <= 1:
            raise InputError(f"loss.{_TERM}.iou: expected a number in (0, 1], got {iou}")
        check_per_image(per_image, _TERM)
        self.temperature, self.per_image, self.iou, self.score_threshold = temperature, per_image, iou, score_threshold

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Nothing to build. Raises InputError unless the teacher is two-stage, the student too or dense, and classes are the same."""
        check_families(student, teacher, _TERM)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "prediction": float32 scalar."""
        if isinstance(step.student, TwoStage):
            stages = paired_rois(step, self.per_image)
            values = [softmax_kl(rois.student.logits, rois.teacher.logits, self.temperature) for rois in stages]
            return {"prediction": mean_over_stages(values).float()}
        return {"prediction": softmax_to_sigmoid(*self._on_boxes_of_the_student(step)).float()}

    def _on_boxes_of_the_student(self, step: Step) -> tuple[Tensor, Tensor]:
        """Class logits (R, C) of the student and (R, 1 + C) of the teacher on the student's own boxes."""
        assert isinstance(step.teacher, TwoStage)
        assert step.student_prediction is not None
        assert step.teacher_prediction is not None
        boxes, sites = student_rois(step, self.per_image, self.iou, self.score_threshold)
        with torch.no_grad():
            theirs = step.teacher.roi_head(step.teacher.pool(step.teacher_prediction, boxes)).logits
        logits = step.student_prediction.raw["cls"]  # (B, N, C)
        return torch.cat([of_image[index] for of_image, index in zip(logits, sites)]), theirs
