"""DeFeat's decoupled imitation of the neck (Guo et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from detkd.losses.decoupled import DecoupledImitation


class DeFeatNeck(DecoupledImitation):
    """The student's neck maps repeat the teacher's, object cells and background cells each with a weight of their own.

    See :func:`~detkd.losses.decoupled.decoupled_l2` and :func:`~detkd.losses.regions.object_masks`. The student's maps first go through phi, a
    3x3 convolution a level that starts near zero, trained with the student and no part of it.

    Args:
        object_weight, background_weight: of the two parts; one may be 0.
        decoupled: each part is a mean over its own region; otherwise both are divided by all elements, so that equal weights give imitation
            without regions.
        score_threshold: of the teacher's detections that stand for objects where a step has no targets.
        box_side: side in pixels of the boxes that belong to stride 4.
        levels: names of maps that both have; None: all neck maps, paired by stride.

    pools_batch: False, though the regions of a batch are counted together; needs_teacher: True. Raises InputError on negative weights.
    """

    def __init__(
        self,
        object_weight: float = 4.0,
        background_weight: float = 16.0,
        decoupled: bool = True,
        score_threshold: float = 0.3,
        box_side: float = 56.0,
        levels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(object_weight, background_weight, decoupled, score_threshold, box_side, levels, "defeat_neck")
