"""G-DetKD's transferred head: the student takes the teacher's heads, which stay as they are (Yao et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from detkd.detectors.protocol import Detector, TwoStage
from detkd.errors import InputError
from detkd.losses.rois import check_pair
from detkd.losses.step import Step

_TERM = "transfer_head"
_MEANING = ("anchor_size", "conventions")  # arguments that give the same weights another meaning


class TransferHead(nn.Module):
    """Before training the student's RPN and RoI heads become the teacher's, weights and norms; training leaves them as they are.

    All is done in :meth:`setup`: parameters of the heads get no gradient, so that no optimiser and no weight decay reaches them, and
    :meth:`train` keeps their norms in eval mode. Gradients go through them to neck and backbone.

    pools_batch: False; needs_teacher: False, what is needed is taken once; adds_loss: False.
    """

    pools_batch = False
    needs_teacher = False
    adds_loss = False

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []  # a list, since they are the student's and no part of this module

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Copy and freeze. Nothing is changed where it raises.

        Raises InputError unless both are two-stage, of one kind and of the same classes, and heads have the same tensors, settings of norms
        and anchors; it names the first difference.
        """
        check_pair(student, teacher, _TERM)
        assert isinstance(student, TwoStage)
        assert isinstance(teacher, TwoStage)
        if difference := _difference(student, teacher):
            raise InputError(f"loss '{_TERM}': expected a student with the teacher's heads, found {difference}")
        theirs = teacher.head_modules()
        for name, head in student.head_modules().items():
            head.load_state_dict(theirs[name].state_dict())
            self._frozen.append(head.requires_grad_(False).eval())

    def train(self, mode: bool = True) -> TransferHead:
        """Switch this module; the student's heads stay in eval mode. A module that holds both must switch the student first."""
        super().train(mode)
        for head in self._frozen:
            head.eval()
        return self

    def forward(self, step: Step) -> dict[str, Tensor]:
        """No part."""
        return {}


def _difference(student: TwoStage, teacher: TwoStage) -> str:
    """The first difference between the heads of two detectors, in words; empty where there is none."""
    if type(student) is not type(teacher):
        return _words("detectors", type(teacher).__name__, type(student).__name__)
    for name in _MEANING:
        mine, theirs = student.arguments().get(name), teacher.arguments().get(name)
        if mine != theirs:
            return _words(name, theirs, mine)
    known = teacher.head_modules()
    for part, head in student.head_modules().items():
        shapes, wanted = _shapes(head), _shapes(known[part])
        if different := [n for n in {**wanted, **shapes} if shapes.get(n) != wanted.get(n)]:
            tensor = different[0]
            return _words(f"'{part}.{tensor}'", wanted.get(tensor, "none"), shapes.get(tensor, "none"))
        for (module, a), (_, b) in zip(head.named_modules(), known[part].named_modules()):
            if getattr(a, "eps", None) != getattr(b, "eps", None):
                return _words(f"eps of '{part}.{module}'", getattr(b, "eps", None), getattr(a, "eps", None))
    return ""


def _shapes(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _words(what: str, teacher: object, student: object) -> str:
    return f"{what}: teacher {teacher}, student {student}"
