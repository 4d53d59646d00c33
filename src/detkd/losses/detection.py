"""The detector's own loss as a term: supervised training, pseudo-labels and inversion."""

from __future__ import annotations

from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.step import Step

OTHER_CLASSES = "Between other classes distil neck maps, like loss=[feature_l2], or train on the set's own boxes, labels=real loss=[detection]"


def no_targets(term: str) -> InputError:
    """The error of a term that needs boxes where there are none."""
    return InputError(
        f"loss '{term}': expected targets, found none (labels=none). Use labels=real (boxes of the data set) or "
        f"labels=teacher (detections of the teacher), or take '{term}' out of loss=[...]"
    )


class DetectionLoss(nn.Module):
    """The loss that the detector itself is trained with, of the student, or in inversion of the frozen teacher.

    DIODE's L_detect (Chawla et al., WACV 2021). Gains are the detector's own.

    pools_batch: False; needs_teacher: False, so that plain training runs no teacher; needs_targets: True.
    """

    pools_batch = False
    needs_teacher = False
    needs_targets = True

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Nothing to build."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        """The parts of ``step.subject``'s loss on ``step.targets``, scalars by the detector's own names.

        Raises InputError where the step has no targets.
        """
        if step.targets is None:
            raise no_targets("detection")
        detector, prediction = step.subject
        return detector.loss(prediction, step.targets)
