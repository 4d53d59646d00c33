"""Mimic loss: the student's raw outputs against the teacher's, with no labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detkd.detectors.modes import probe
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.detection import OTHER_CLASSES
from detkd.losses.step import Step
from detkd.structures import Prediction


def mimic_loss(student: Prediction, teacher: Prediction, objectness_scaled: bool = False) -> Tensor:
    """Mean square difference of raw head outputs, summed over levels.

    Args:
        student, teacher: predictions on the same images, whose ``raw`` has the same names, each (B, N, K), and the same ``sizes``.
        objectness_scaled: each site's squares of all names but "obj" count as much as the teacher is sure of an object there, times the
            sigmoid of its "obj" (Mehta and Ozturk, "Object detection at 200 Frames Per Second", ECCV workshops 2018).

    Returns:
        float32 scalar: for each level, the squares over all names and sites divided by (B * sites of the level * channels of
        all names); summed over levels. So it does not matter how channels are split into names, nor into how many images.
        The teacher gets no gradient. Computed in float32 whatever autocast says.

    Source: L_mimic = ||Phi(x) - Phi_stu(x)||^2 of DIODE (Chawla et al., WACV 2021), before the sigmoid. The paper leaves the
    normalisation open; the authors' code takes the mean over each head, which is the same where a head is one tensor.

    Raises InputError when the two cannot be compared.
    """
    if differences := compare(student, teacher):
        raise InputError(_not_comparable(differences))
    squares, channels = None, 0
    sureness = teacher.raw["obj"].detach().float().sigmoid().squeeze(-1) if objectness_scaled else None  # (B, N)
    for name, raw in student.raw.items():
        of_name = (raw.float() - teacher.raw[name].detach().float()).square().sum(-1)  # (B, N, K) -> (B, N)
        if sureness is not None and name != "obj":
            of_name = of_name * sureness
        squares = of_name if squares is None else squares + of_name
        channels += raw.shape[-1]
    assert squares is not None
    levels = torch.split(squares, [h * w * a for h, w, a in student.sizes], dim=1)  # (B, N_level) each
    return torch.stack([level.mean() for level in levels]).sum() / channels


def compare(student: Prediction, teacher: Prediction) -> list[str]:
    """What differs in the layout of two predictions' raw outputs, in words; empty where they can be compared."""
    if set(student.raw) != set(teacher.raw) or not student.raw:
        return [_differ("names", sorted(teacher.raw), sorted(student.raw))]
    differences = []
    for name in student.raw:
        if student.raw[name].shape[-1] != teacher.raw[name].shape[-1]:
            differences.append(_differ(f"channels of '{name}'", teacher.raw[name].shape[-1], student.raw[name].shape[-1]))
    if len(student) != len(teacher):
        differences.append(_differ("images", len(teacher), len(student)))
    if student.sizes != teacher.sizes:
        differences.append(_differ("levels (height, width, anchors)", teacher.sizes, student.sizes))
    if student.geometry != teacher.geometry:
        differences.append(_differ("anchors and offsets", teacher.geometry, student.geometry))
    return differences


class Mimic(nn.Module):
    """The student repeats the teacher's raw outputs; see :func:`mimic_loss`.

    pools_batch: False; needs_teacher: True.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, objectness_scaled: bool = False) -> None:
        super().__init__()
        self.objectness_scaled = objectness_scaled

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Check on one blank image of the student's size that raw outputs can be compared.

        Both run in eval mode without gradients, so neither is changed. Raises InputError naming what differs, and for objectness_scaled
        where the teacher has no objectness, one channel named "obj".
        """
        if student is None or teacher is None:
            raise InputError(
                f"loss 'mimic': expected a student and a teacher, found no {'student' if student is None else 'teacher'}"
            )
        if difference := teacher.spec.class_difference(student.spec):
            raise InputError(f"loss 'mimic': expected the same classes, found {difference}. {OTHER_CLASSES}")
        size = student.spec.image_size
        blank = probe(teacher, size)
        if differences := compare(probe(student, size), blank):
            raise InputError(_not_comparable(differences))
        if self.objectness_scaled and ("obj" not in blank.raw or blank.raw["obj"].shape[-1] != 1):
            found = {name: raw.shape[-1] for name, raw in blank.raw.items()}
            raise InputError(
                f"loss.mimic.objectness_scaled: expected raw outputs with one channel 'obj', as of a YOLO, found channels {found}"
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "mimic": float32 scalar, batch mean."""
        assert step.student_prediction is not None
        assert step.teacher_prediction is not None
        return {"mimic": mimic_loss(step.student_prediction, step.teacher_prediction, self.objectness_scaled)}


def _differ(what: str, teacher: Any, student: Any) -> str:
    return f"{what}: teacher {teacher}, student {student}"


def _not_comparable(differences: list[str]) -> str:
    return (
        f"loss 'mimic': expected raw outputs of the same layout from teacher and student, found {'; '.join(differences)}. "
        "Where architectures differ, distil through boxes: labels=teacher loss=[detection]"
    )
