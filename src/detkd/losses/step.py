"""Step: all that a loss term may look at in one training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from detkd.detectors.norms import Observed
from detkd.detectors.protocol import Detector, TwoStage
from detkd.errors import InputError
from detkd.structures import Detection, Prediction, Target, pseudo_labels


@dataclass(frozen=True)
class Step:
    """Built once a training step. Inversion has no student; distillation without labels has no targets.

    Args:
        images: (B, 3, H, W) in [0, 1], as the detectors saw them (augmented).
        targets: one an image, or None.
        teacher, teacher_prediction: the frozen detector and its forward pass.
        student, student_prediction: the detector in training and its forward pass.
        clean_images: inversion only: the images before augmentation.
        statistics: inversion only: what the teacher's normalisations saw in this pass.
        shared: what terms made of this step and share, by a key of their own.
        metrics: what the term at work has to report beside its loss, see :meth:`record`.
    """

    images: Tensor
    targets: Sequence[Target] | None = None
    teacher: Detector | None = None
    teacher_prediction: Prediction | None = None
    student: Detector | None = None
    student_prediction: Prediction | None = None
    clean_images: Tensor | None = None
    statistics: Sequence[Observed] | None = None
    shared: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    metrics: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def subject(self) -> tuple[Detector, Prediction]:
        """The detector whose own loss is asked for: the student, or in inversion the teacher, with its prediction."""
        if self.student is not None:
            assert self.student_prediction is not None
            return self.student, self.student_prediction
        assert self.teacher is not None
        assert self.teacher_prediction is not None
        return self.teacher, self.teacher_prediction

    @cached_property
    def proposals(self) -> list[Tensor]:
        """Proposals (R, 4) an image, xyxy in pixels, without gradient: the teacher's, or the student's where only that is two-stage.

        Made when first asked for, then shared by all terms. Raises InputError where neither detector proposes boxes.
        """
        pairs = ((self.teacher, self.teacher_prediction), (self.student, self.student_prediction))
        for detector, prediction in pairs:
            if isinstance(detector, TwoStage) and prediction is not None:
                return detector.propose(prediction)
        raise InputError("proposals: expected a two-stage teacher or student, found neither")

    @cached_property
    def teacher_detections(self) -> list[Detection]:
        """What the teacher finds, made when first asked for. Raises InputError without a teacher."""
        if self.teacher is None or self.teacher_prediction is None:
            raise InputError("objects: expected targets or a teacher, found neither")
        return self.teacher.decode(self.teacher_prediction)

    def objects(self, threshold: float) -> Sequence[Target]:
        """Where the objects are: the targets, or without them the teacher's detections that score more than ``threshold``."""
        return self.targets if self.targets is not None else pseudo_labels(self.teacher_detections, threshold)

    def record(self, name: str, value: Tensor) -> None:
        """Report a number that is logged as "term/name" and adds nothing to the loss: a scalar, kept without gradient and on its device."""
        self.metrics[name] = value.detach()

    def image(self, index: int) -> Step:
        """The step for image ``index`` alone. Statistics pool the batch, so they are left out."""
        return replace(
            self,
            images=self.images[index : index + 1],
            targets=None if self.targets is None else self.targets[index : index + 1],
            teacher_prediction=None if self.teacher_prediction is None else self.teacher_prediction.image(index),
            student_prediction=None if self.student_prediction is None else self.student_prediction.image(index),
            clean_images=None if self.clean_images is None else self.clean_images[index : index + 1],
            statistics=None,
        )
