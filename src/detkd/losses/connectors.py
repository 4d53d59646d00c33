"""Which feature maps of student and teacher belong together, and the convolutions between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from detkd.detectors.modes import probe
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.structures import Prediction

Kind = Literal["1x1", "3x3"]
Init = Literal["default", "near_zero"]
Pairs = dict[str, tuple[Tensor, Tensor]]
_NEAR_ZERO_STD = 1e-3


@dataclass(frozen=True)
class Level:
    """A map of the student and the map of the teacher that it is compared with, by their names in ``Prediction.features``."""

    student: str
    teacher: str


def neck_strides(prediction: Prediction) -> dict[str, int]:
    """Names and strides (pixels a cell) of the maps that the head reads, fine first.

    These are the maps named "p3", "p4", ...; where a detector has none, its backbone stages ("c3") of the head's strides. The stride of a
    map is the head's where there is one map a level, else 2 to the power in its name.
    """
    names = [name for name in prediction.features if re.match(r"p\d", name)]
    if not names:
        names = [name for name in prediction.features if _nominal_stride(name) in prediction.strides]
    if len(names) == len(prediction.strides):
        return dict(zip(names, prediction.strides))
    return {name: _nominal_stride(name) for name in names}


def match_levels(
    student: Prediction, teacher: Prediction, levels: Sequence[str] | None = None, term: str = "feature"
) -> list[Level]:
    """Pair the maps of two predictions on images of the same size, fine first.

    Args:
        levels: names of maps, backbone stages too ("c4"), that both have at the same stride; None: all neck maps of both, paired by stride.
        term: the loss term that asks, for the message.

    Raises InputError that names both sides' levels and strides where they do not match, or where two maps of a pair differ in size.
    """
    mine, theirs = neck_strides(student), neck_strides(teacher)
    if levels is not None:
        if not levels or len(set(levels)) < len(levels):
            raise InputError(
                f"loss.{term}.levels: expected names that differ, like [p3,p4], or null for all, got {list(levels)}"
            )
        for side, prediction in (("student", student), ("teacher", teacher)):
            if missing := [name for name in levels if name not in prediction.features]:
                raise InputError(
                    f"loss.{term}.levels: expected maps of the {side} {sorted(prediction.features)}, got {missing}"
                )
        for name in levels:
            own, other = mine.get(name, _nominal_stride(name)), theirs.get(name, _nominal_stride(name))
            if own != other:
                raise InputError(
                    f"loss.{term}.levels: expected '{name}' to have the same stride on both sides, found {own} px of the student and "
                    f"{other} px of the teacher"
                )
        pairs = [Level(name, name) for name in levels]
    else:
        if not mine or list(mine.values()) != list(theirs.values()):
            common = [name for name, stride in mine.items() if theirs.get(name) == stride]
            hint = f"; loss.{term}.levels=[{','.join(common)}] takes those that both have" if common else ""
            raise InputError(
                f"loss '{term}': expected feature levels of the same strides, found {_words(mine)} of the student and "
                f"{_words(theirs)} of the teacher{hint}"
            )
        pairs = [Level(a, b) for a, b in zip(mine, theirs)]
    for pair in pairs:
        a, b = student.features[pair.student].shape[-2:], teacher.features[pair.teacher].shape[-2:]
        if a != b:
            raise InputError(
                f"loss '{term}': expected maps of the same size, found {tuple(a)} for '{pair.student}' of the student and {tuple(b)} "
                f"for '{pair.teacher}' of the teacher, on images {student.image_size}"
            )
    return pairs


class Connectors(nn.Module):
    """The student's maps in the teacher's channels, beside the teacher's maps.

    Args:
        kind: "1x1" a 1x1 convolution with bias from student to teacher channels, nothing where they are equal; "3x3" a 3x3 convolution with
            bias at every level.
        init: "default" torch's own; "near_zero" weights N(0, 1e-3), bias 0.
        levels: see :func:`match_levels`.

    Built by :meth:`setup`, before the optimiser is made, so that its parameters are trained and checkpointed with the loss and are no part of
    the student. Raises InputError for unknown options.
    """

    def __init__(self, kind: Kind = "1x1", init: Init = "default", levels: Sequence[str] | None = None) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise InputError(f"connectors: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
        if init not in get_args(Init):
            raise InputError(f"connectors: expected init {' or '.join(get_args(Init))}, got {init!r}")
        self.kind, self.init = kind, init
        self.wanted = None if levels is None else tuple(levels)
        self.levels: list[Level] = []
        self.channels: dict[str, int] = {}
        self.maps = nn.ModuleDict()

    def setup(self, student: Detector | None, teacher: Detector | None, term: str) -> None:
        """Pair the levels and build the convolutions, from one blank image of the student's size through both detectors.

        Both run in eval mode without gradients and are left as they were. The convolutions draw from the global random state: the composite
        forks it. After it, ``levels`` has the pairs and ``channels`` the channels of each by the student's name: those of the teacher.

        Args:
            term: name of the loss term, for messages.

        Raises InputError where a detector is missing or levels do not match.
        """
        if student is None or teacher is None:
            raise InputError(
                f"loss '{term}': expected a student and a teacher, found no {'student' if student is None else 'teacher'}"
            )
        mine = probe(student, student.spec.image_size)
        theirs = probe(teacher, student.spec.image_size)
        self.levels = match_levels(mine, theirs, self.wanted, term)
        for level in self.levels:
            source, target = mine.features[level.student], theirs.features[level.teacher]
            self.channels[level.student] = target.shape[1]
            self.maps[_key(level.student)] = self._make(source.shape[1], target.shape[1]).to(source)

    def forward(self, step: Step) -> Pairs:
        """(student, teacher) maps, (B, C, H, W) each with the teacher's C, by the student's name of the level, fine first.

        The teacher's maps are detached.
        """
        assert step.student_prediction is not None
        assert step.teacher_prediction is not None
        assert self.levels, "setup comes first"
        return {
            level.student: (
                self.maps[_key(level.student)](step.student_prediction.features[level.student]),
                step.teacher_prediction.features[level.teacher].detach(),
            )
            for level in self.levels
        }

    def _make(self, source: int, target: int) -> nn.Module:
        if self.kind == "1x1" and source == target:
            return nn.Identity()
        size = 1 if self.kind == "1x1" else 3
        convolution = nn.Conv2d(source, target, size, padding=size // 2)
        if self.init == "near_zero":
            nn.init.normal_(convolution.weight, std=_NEAR_ZERO_STD)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        return convolution


def full(value: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are. Losses are not for half precision."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _nominal_stride(name: str) -> int:
    found = re.match(r"[a-z]+(\d+)", name)
    return 2 ** int(found[1]) if found else 0


def _key(name: str) -> str:
    return name.replace(".", "_")  # a ModuleDict takes no dots


def _words(strides: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({stride} px)" for name, stride in strides.items()) or "none"


def over_levels(pairs: Pairs, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The sum over levels of ``loss(student, teacher)``: a float32 scalar, computed outside autocast and never in half precision."""
    values = []
    for student, teacher in pairs.values():
        with torch.autocast(student.device.type, enabled=False):
            values.append(loss(full(student), full(teacher)))
    return torch.stack(values).sum().float()
