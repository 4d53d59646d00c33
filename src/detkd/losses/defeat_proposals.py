"""DeFeat's decoupled imitation of proposals' classes (Guo et al., CVPR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.connectors import full
from detkd.losses.parts import check_weights, weighted_parts
from detkd.losses.reduce import mean_count
from detkd.losses.rois import PairedRoIs, check_pair, check_per_image, mean_over_stages, on_objects, paired_rois
from detkd.losses.step import Step

_TERM = "defeat_proposals"


def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    positive: Tensor,
    object_temperature: float = 1.0,
    background_temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """KL divergence from the teacher's classes to the student's, a mean over positive and one over negative proposals.

    Args:
        student, teacher: (R, C) logits; the teacher gets no gradient. positive: (R,) bool.
        object_temperature, background_temperature: T of softmax(logits / T) for the two groups; each mean is multiplied by its T^2.

    Returns:
        (positive, negative): float32 scalars, float64 for float64. A group without a proposal counts 0. Counts are those of all processes,
        see :func:`~detkd.losses.reduce.mean_count`.

    Source: L_cls of DeFeat, without the weights. The released code has one temperature for both groups; the paper has two.
    """
    with torch.autocast(student.device.type, enabled=False):
        mine, theirs = full(student), full(teacher.detach())
        groups = torch.stack([positive, ~positive]).to(mine)  # (2, R)
        counts, parts = mean_count(groups.sum(1)), []
        for group, count, temperature in zip(groups, counts, (object_temperature, background_temperature)):
            log_t = (theirs / temperature).log_softmax(1)
            divergence = (log_t.exp() * (log_t - (mine / temperature).log_softmax(1))).sum(1)  # (R,)
            parts.append((group * divergence).sum() / count * temperature**2)
    return parts[0], parts[1]


class DeFeatProposals(nn.Module):
    """The student's RoI head classifies the teacher's proposals as the teacher's does; see :func:`decoupled_kl`.

    Args:
        object_weight, background_weight: of the two groups; one may be 0.
        object_temperature, background_temperature: of their softmaxes.
        iou: least overlap with an object that makes a proposal positive.
        score_threshold: of the teacher's detections that stand for objects where a step has no targets.
        per_image: how many of the teacher's proposals, best first.

    pools_batch: False, though the proposals of a batch are counted together; needs_teacher: True. Raises InputError on values out of range.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(
        self,
        object_weight: float = 2.0,
        background_weight: float = 2.0,
        object_temperature: float = 1.0,
        background_temperature: float = 1.0,
        iou: float = 0.5,
        score_threshold: float = 0.3,
        per_image: int = 512,
    ) -> None:
        super().__init__()
        check_weights(_TERM, object_weight=object_weight, background_weight=background_weight)
        if not (object_temperature > 0 and background_temperature > 0):
            raise InputError(
                f"loss.{_TERM}: expected positive temperatures, got {object_temperature} and {background_temperature}"
            )
        if not 0 < iou <= 1:
            raise InputError(f"loss.{_TERM}.iou: expected a number in (0, 1], got {iou}")
        check_per_image(per_image, _TERM)
        self.object_weight, self.background_weight = object_weight, background_weight
        self.object_temperature, self.background_temperature = object_temperature, background_temperature
        self.iou, self.score_threshold, self.per_image = iou, score_threshold, per_image

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Nothing to build. Raises InputError unless both are two-stage and of the same classes."""
        check_pair(student, teacher, _TERM)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{object, background}: float32 scalars times their weights; a part of weight 0 is left out."""
        stages = [self._stage(step, rois) for rois in paired_rois(step, self.per_image)]
        objects, background = (mean_over_stages(parts) for parts in zip(*stages))
        return weighted_parts({"object": (self.object_weight, objects), "background": (self.background_weight, background)})

    def _stage(self, step: Step, rois: PairedRoIs) -> tuple[Tensor, Tensor]:
        positive = on_objects(rois.boxes, step.objects(self.score_threshold), self.iou)
        return decoupled_kl(
            rois.student.logits, rois.teacher.logits, positive, self.object_temperature, self.background_temperature
        )
