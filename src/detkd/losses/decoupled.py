"""Feature imitation with objects and background decoupled (DeFeat, Guo et al., CVPR 2021, equation 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.connectors import Connectors, full
from detkd.losses.parts import check_weights, weighted_parts
from detkd.losses.reduce import mean_count
from detkd.losses.regions import object_masks, strides_of
from detkd.losses.step import Step


def decoupled_l2(
    students: Sequence[Tensor], teachers: Sequence[Tensor], masks: Sequence[Tensor], decoupled: bool = True
) -> tuple[Tensor, Tensor]:
    """Half the mean square difference over object cells and over background cells, mean over levels.

    Args:
        students, teachers: (B, C, H, W) a level; the teacher gets no gradient. masks: (B, H, W) bool a level, True where objects are.
        decoupled: divide each sum by the elements of its own region, C times its cells; otherwise both by all elements.

    Returns:
        (object, background): float32 scalars, float64 for float64. A region without a cell counts 0. Element counts are those of all
        processes, see :func:`~detkd.losses.reduce.mean_count`.

    Source: L_fea of DeFeat, 1/(2 N) sum M (phi(S) - T)^2 and the same with 1 - M, without the weights.
    """
    sums, counts = [], []
    for mine, theirs, mask in zip(students, teachers, masks, strict=True):
        with torch.autocast(mine.device.type, enabled=False):
            squares = (full(mine) - full(theirs.detach())).square().sum(1)  # (B, C, H, W) -> (B, H, W)
            objects = mask.to(squares)
            sums.append(torch.stack([(squares * objects).sum(), (squares * (1 - objects)).sum()]))
            cells = torch.stack([objects.sum(), (1 - objects).sum()]) * mine.shape[1]
            counts.append(cells if decoupled else cells.sum().expand(2))
    parts = (torch.stack(sums) / (2 * mean_count(torch.stack(counts)))).mean(0)  # (levels, 2) -> (2,)
    return parts[0], parts[1]


class DecoupledImitation(nn.Module):
    """What defeat_neck and defeat_backbone share: connectors phi, masks, weights. Arguments as of those terms.

    name: of the term. levels: names of maps, None for the whole neck.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(
        self,
        object_weight: float,
        background_weight: float,
        decoupled: bool,
        score_threshold: float,
        box_side: float,
        levels: Sequence[str] | None,
        name: str,
    ) -> None:
        super().__init__()
        check_weights(name, object_weight=object_weight, background_weight=background_weight)
        if not box_side > 0:
            raise InputError(f"loss.{name}.box_side: expected a positive number of pixels, got {box_side}")
        self.object_weight, self.background_weight, self.decoupled = object_weight, background_weight, decoupled
        self.score_threshold, self.box_side, self.name = score_threshold, box_side, name
        self.connectors = Connectors("3x3", "near_zero", levels)

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Build phi, a 3x3 convolution a level. Raises InputError where levels do not match or a detector is missing."""
        self.connectors.setup(student, teacher, self.name)

    def forward(self, step: Step) -> dict[str, Tensor]:
        """{object, background}: float32 scalars times their weights, mean over levels; a part of weight 0 is left out."""
        assert step.teacher_prediction is not None
        pairs = self.connectors(step)
        names = [level.teacher for level in self.connectors.levels]
        strides = strides_of(step.teacher_prediction, names)
        sizes = [(t.shape[-2], t.shape[-1]) for _, t in pairs.values()]
        masks = object_masks(step.objects(self.score_threshold), sizes, strides, self.box_side)
        masks = [m.to(t.device) for m, (_, t) in zip(masks, pairs.values())]
        students, teachers = [s for s, _ in pairs.values()], [t for _, t in pairs.values()]
        objects, background = decoupled_l2(students, teachers, masks, self.decoupled)
        return weighted_parts({"object": (self.object_weight, objects), "background": (self.background_weight, background)})
