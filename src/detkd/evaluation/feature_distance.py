"""How far a student's feature maps are from its teacher's, channel by channel, where objects are and where none are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.connectors import Level, neck_strides
from detkd.structures import Prediction


class RegionSums(NamedTuple):
    """Sums over the cells of the two regions, in float64, so that those of many images can be added up.

    objects, background: (C,) one a channel. cells: (2,) how many cells each region has.
    """

    objects: Tensor
    background: Tensor
    cells: Tensor

    def plus(self, other: RegionSums) -> RegionSums:
        """The sums over both."""
        return RegionSums(*(a + b for a, b in zip(self, other)))

    def cpu(self) -> RegionSums:
        """The same on the CPU."""
        return RegionSums(*(part.cpu() for part in self))

    def means(self) -> tuple[Tensor, Tensor]:
        """(C,) means over the object cells and over the background cells; NaN for a region without a cell."""
        return self.objects / self.cells[0], self.background / self.cells[1]


def region_sums(values: Tensor, mask: Tensor) -> RegionSums:
    """Sum values (B, C, H, W) over the cells where mask (B, H, W) is True, and over the others."""
    values = values.detach().double()
    inside = mask.to(values)[:, None]  # (B, 1, H, W)
    cells = torch.stack([inside.sum(), (1 - inside).sum()])
    return RegionSums((values * inside).sum((0, 2, 3)), (values * (1 - inside)).sum((0, 2, 3)), cells)


def channel_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> RegionSums:
    """Sums of |T - S| by channel: maps (B, C, H, W) of one shape, mask (B, H, W) bool, True where objects are.

    Source: the supplement of DeFeat (Guo et al., CVPR 2021), which shows the means at the first level of a feature pyramid over 20 images.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected two maps of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    return region_sums((teacher.detach().double() - student.detach().double()).abs(), mask)


def comparable_level(student: Prediction, teacher: Prediction, level: str | None, name: str) -> Level:
    """The neck maps that a distance is taken between, as they are: no convolution is between them.

    Args:
        level: name of the student's map; None takes its first that the teacher has one of the same stride for.
        name: of the student, for messages.

    Raises InputError where there is no such pair or channels or sizes differ.
    """
    mine, theirs = neck_strides(student), neck_strides(teacher)
    by_stride = {stride: other for other, stride in reversed(theirs.items())}
    pairs = {own: by_stride[stride] for own, stride in mine.items() if stride in by_stride}
    if level is not None and level not in pairs:
        raise InputError(
            f"level: expected a neck level that {name} and the teacher both have, one of {list(pairs)}, found {level!r}"
        )
    if not pairs:
        raise InputError(f"level: expected a stride that {name} and the teacher share, found {mine} and {theirs}")
    pair = Level(level, pairs[level]) if level is not None else Level(*next(iter(pairs.items())))
    own, other = student.features[pair.student].shape[1:], teacher.features[pair.teacher].shape[1:]
    if own != other:
        raise InputError(
            f"level: expected maps '{pair.student}' of {name} and '{pair.teacher}' of the teacher of one shape (channels, height, width), "
            f"found {tuple(own)} and {tuple(other)}; distances are between the maps as they are, without a convolution in between"
        )
    return pair
