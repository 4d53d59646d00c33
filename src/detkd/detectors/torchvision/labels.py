"""Which column of a torchvision head holds which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detkd.errors import InputError
from detkd.structures import Detection

COCO91: tuple[str, ...] = tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
"""The 91 columns of torchvision's COCO heads: background, 80 classes and 10 ids that COCO never used ("N/A")."""

_COCO_COLUMNS = tuple(i for i, name in enumerate(COCO91) if name not in ("__background__", "N/A"))
COCO_CLASSES: tuple[str, ...] = tuple(COCO91[i] for i in _COCO_COLUMNS)
"""The 80 class names of COCO, in the order of their ids."""


@dataclass(frozen=True)
class HeadLabels:
    """The map between labels (0-based, no background) and the columns of a head.

    Args:
        classes: class names; label ``i`` is ``classes[i]``.
        columns: the head's column of each label.
        width: number of columns of the head.
        background: column 0 is background of a softmax.
    """

    classes: tuple[str, ...]
    columns: tuple[int, ...]
    width: int
    background: bool

    @property
    def complete(self) -> bool:
        """Every column is background or one of the classes, in order."""
        return self.columns == tuple(range(int(self.background), self.width))

    def select(self, logits: Tensor) -> Tensor:
        """(..., width) logits to (..., [1 +] classes): background, where there is one, and the classes."""
        if self.complete:
            return logits
        columns = (0, *self.columns) if self.background else self.columns
        return logits[..., torch.tensor(columns, device=logits.device)]

    def select_deltas(self, deltas: Tensor) -> Tensor:
        """(R, width * 4) box corrections to (R, classes, 4): those of the classes, without background."""
        of_column = deltas.reshape(len(deltas), self.width, 4)  # (R, width * 4) -> (R, width, 4)
        if self.complete:
            return of_column[:, int(self.background) :]
        return of_column[:, torch.tensor(self.columns, device=deltas.device)]

    def to_columns(self, labels: Tensor) -> Tensor:
        """(n,) labels to the columns that hold them."""
        if self.complete:
            return labels + int(self.background)
        return torch.tensor(self.columns, device=labels.device)[labels]

    def to_detection(self, output: Mapping[str, Tensor]) -> Detection:
        """torchvision's boxes, scores and column numbers to a detection; columns that hold no class are left out."""
        boxes, scores, columns = output["boxes"], output["scores"], output["labels"]
        if self.complete:
            return Detection(boxes=boxes, labels=columns - int(self.background), scores=scores)
        table = torch.full((self.width,), -1, device=columns.device)
        table[torch.tensor(self.columns, device=columns.device)] = torch.arange(len(self.columns), device=columns.device)
        labels = table[columns]
        keep = labels >= 0
        return Detection(boxes=boxes[keep], labels=labels[keep], scores=scores[keep])


def make_head_labels(classes: Sequence[str] | None, coco91: bool, background: bool) -> HeadLabels:
    """The columns of a head for ``classes``, or of torchvision's 91-column COCO head.

    Args:
        classes: class names; may be left out (None) with ``coco91``.
        coco91: the head has torchvision's 91 columns, of which 80 are the COCO classes.
        background: the family has a background column (SSD, Faster R-CNN). A 91-column head always has the unused column 0.

    Raises InputError without any class, or when ``classes`` are not COCO's under ``coco91``.
    """
    if coco91:
        if classes is not None and tuple(classes) != COCO_CLASSES:
            raise InputError(
                f"classes: expected the 80 COCO names in order (or none) for a 91-column COCO head, got {len(classes)} names"
            )
        return HeadLabels(COCO_CLASSES, _COCO_COLUMNS, len(COCO91), background)
    if not classes:
        raise InputError("classes: expected class names (or coco91=true, or published weights), got none")
    names = tuple(classes)
    first = int(background)
    return HeadLabels(names, tuple(range(first, first + len(names))), first + len(names), background)
