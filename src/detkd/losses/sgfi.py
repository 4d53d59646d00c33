"""SGFI, semantic-guided feature imitation: the student's levels are weighed by what they mean (G-DetKD, Yao et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from detkd.detectors.modes import looking, probe
from detkd.detectors.protocol import Detector, TwoStage
from detkd.errors import InputError
from detkd.losses.connectors import full, neck_strides
from detkd.losses.reduce import mean_count
from detkd.losses.regions import box_levels
from detkd.losses.rois import check_families, check_per_image, student_rois
from detkd.losses.step import Step
from detkd.structures import Prediction

_TERM = "sgfi"
_POOLED, _SAMPLES = 7, 2  # of RoIAlign, as torchvision's


def level_weights(student_keys: Tensor, teacher_keys: Tensor, temperature: Tensor) -> Tensor:
    """softmax over levels of <student key, teacher key> / temperature: (R, L, K) and (R, K) to (R, L)."""
    with torch.autocast(student_keys.device.type, enabled=False):
        return (torch.einsum("rlk,rk->rl", full(student_keys), full(teacher_keys)) / full(temperature)).softmax(1)


def sgfi_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Mean square difference between each box's teacher feature and the student's features of all levels, weighed.

    Args:
        student: (R, L, C, h, w), of each level. teacher: (R, C, h, w), without gradient. weights: (R, L), summing to 1 over levels.

    Returns:
        scalar, float32 (float64 for float64): 1/R sum_i mean (sum_l weights_l S_l - T)^2. R counts the boxes of all processes; 0 boxes
        give 0.

    Source: L_feat of G-DetKD, equations of its section on semantic-guided feature imitation.
    """
    with torch.autocast(student.device.type, enabled=False):
        merged = torch.einsum("rl,rlchw->rchw", full(weights), full(student))
        squares = (merged - full(teacher.detach())).square()
        return squares.mean((1, 2, 3)).sum() / mean_count(squares.new_full((), len(squares)))


class SGFI(nn.Module):
    """The student's features of a box, of all levels, weighed by likeness, repeat the teacher's; see :func:`sgfi_loss`.

    Boxes are the teacher's proposals, or of a dense student its own boxes. The teacher's feature is RoIAlign (7x7) from the box's own level, of a
    dense teacher that of :func:`~detkd.losses.regions.box_levels`; the
    student's from every level, through a 1x1 convolution to the teacher's channels. Both are embedded by the same two convolutions of stride 2.

    Args:
        per_image: boxes an image, best first.
        iou, score_threshold: dense students alone: least overlap of a positive box, and of the teacher's detections that stand for objects
            where a step has no targets.

    pools_batch: False, though the boxes of a batch are counted together; needs_teacher: True. Raises InputError on values out of range.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, per_image: int = 512, iou: float = 0.5, score_threshold: float = 0.3) -> None:
        super().__init__()
        check_per_image(per_image, _TERM)
        if not 0 < iou <= 1:
            raise InputError(f"loss.{_TERM}.iou: expected a number in (0, 1], got {iou}")
        self.per_image, self.iou, self.score_threshold = per_image, iou, score_threshold
        self.log_temperature = nn.Parameter(torch.zeros(()))  # the exponential keeps the temperature positive
        self.adapter: nn.Module = nn.Identity()
        self.embed: nn.Module = nn.Identity()

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Build adapter and embedding from one blank image, which leaves both detectors as they were.

        Raises InputError unless the teacher is two-stage and the student too or dense, or both are dense. Classes may differ.
        """
        check_families(student, teacher, _TERM, same_classes=False, dense_teacher=True)
        assert student is not None
        assert teacher is not None
        parameter, size = next(student.parameters()), student.spec.image_size
        box = [parameter.new_tensor([[0.0, 0.0, 16.0, 16.0]])]
        with looking(student), looking(teacher):
            source = _every_level(student, probe(student, size), box).shape[2]
            channels = _own_level(teacher, probe(teacher, size), box).shape[1]
        half, quarter = max(channels // 2, 1), max(channels // 4, 1)
        self.adapter = nn.Conv2d(source, channels, 1).to(parameter)
        self.embed = nn.Sequential(
            nn.Conv2d(channels, half, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, quarter, 3, stride=2, padding=1),
            nn.Flatten(),
        ).to(parameter)
        self.log_temperature.data = self.log_temperature.data.to(parameter)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "sgfi": float32 scalar."""
        student, teacher = step.student, step.teacher
        assert student is not None
        assert teacher is not None
        assert step.student_prediction is not None
        assert step.teacher_prediction is not None
        boxes = self._boxes(step)
        with torch.no_grad():
            theirs = _own_level(teacher, step.teacher_prediction, boxes)  # (R, C, 7, 7)
        levels = _every_level(student, step.student_prediction, boxes)  # (R, L, C_s, 7, 7)
        rows, count = levels.shape[:2]
        adapted = self.adapter(levels.flatten(0, 1))  # (R*L, C, 7, 7)
        keys = full(self.embed(adapted))
        keys = keys.reshape(rows, count, keys.shape[1])  # (R*L, K) -> (R, L, K)
        weights = level_weights(keys, full(self.embed(theirs)), self.log_temperature.exp())
        value = sgfi_loss(adapted.reshape(rows, count, *adapted.shape[1:]), theirs, weights)
        return {"sgfi": value.float()}

    def _boxes(self, step: Step) -> list[Tensor]:
        if isinstance(step.student, TwoStage):
            return [of_image[: self.per_image] for of_image in step.proposals]
        return student_rois(step, self.per_image, self.iou, self.score_threshold).boxes


def _every_level(detector: Detector, prediction: Prediction, boxes: Sequence[Tensor]) -> Tensor:
    """RoIAlign of boxes (r, 4) an image on every level: (R, L, C, 7, 7). Two-stage: the levels of its RoI head; dense: its neck."""
    if isinstance(detector, TwoStage):
        return detector.pool(prediction, boxes, level="all")
    return torch.stack(list(_levels(prediction, boxes)), dim=1)  # (R, L, C, 7, 7)


def _own_level(detector: Detector, prediction: Prediction, boxes: Sequence[Tensor]) -> Tensor:
    """RoIAlign of boxes (r, 4) an image on the level that their size assigns them to: (R, C, 7, 7)."""
    if isinstance(detector, TwoStage):
        return detector.pool(prediction, boxes)
    level = box_levels(torch.cat(list(boxes)).float(), list(neck_strides(prediction).values()))  # (R,)
    # all boxes on every level, one level at a time: to pick them out would wait for the device
    pooled: Tensor | None = None
    for number, found in enumerate(_levels(prediction, boxes)):
        pooled = found if pooled is None else torch.where((level == number)[:, None, None, None], found, pooled)
    assert pooled is not None
    return pooled


def _levels(prediction: Prediction, boxes: Sequence[Tensor]) -> Iterator[Tensor]:
    """(R, C, 7, 7) a level of the neck."""
    for name, stride in neck_strides(prediction).items():
        maps = full(prediction.features[name])
        yield roi_align(maps, [b.to(maps) for b in boxes], _POOLED, 1 / stride, _SAMPLES)
