"""A layout from labels: the boxes of a COCO json, without its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from detkd.data.annotations import read_boxes
from detkd.data.checks import OnProblem
from detkd.errors import InputError
from detkd.inversion.layout import check_names, labels_of
from detkd.structures import Target, join_targets


class LabelledBoxes:
    """Give each image the boxes of one labelled image, stretched to its size.

    Args:
        annotations: path of a COCO json. No image is opened, file names are not looked at.
        seed: of the layout.
        classes: names of the classes to take, among those of the teacher; None: all.
        on_unknown: a category in use that the teacher does not know is an error, or its boxes are left out with one warning.
        min_side: pixels; a box with a shorter side in the image to be made is left out, the teacher could not see it.

    Categories map to the teacher's classes by name. Crowd regions, boxes of no extent and boxes outside their image are left out; a
    labelled image that keeps no box is not drawn. Within a call no labelled image is drawn again before all were; calls
    know nothing of each other.

    Raises InputError when the file cannot be read, and, at the first call, when it is damaged, when a category is unknown and when
    no box is left.

    Source: DIODE (Chawla et al., WACV 2021), Table 3 (boxes and classes of COCO). The drawing order and ``min_side`` are ours.
    """

    def __init__(
        self,
        annotations: str | Path,
        seed: int = 0,
        classes: Sequence[str] | None = None,
        on_unknown: OnProblem = "error",
        min_side: float = 4.0,
    ) -> None:
        if on_unknown not in ("error", "drop"):
            raise InputError(f"layout.on_unknown: expected error or drop, got {on_unknown!r}")
        if not 0 < min_side < math.inf:
            raise InputError(f"layout.min_side: expected pixels, more than 0, got {min_side}")
        check_names(classes)
        self.path = Path(annotations)
        try:
            self.path.open("rb").close()  # what is in it can be read only with the teacher's classes
        except OSError as error:
            raise InputError(
                f"layout.annotations: expected a COCO json, found none that can be read at {self.path} ({error.strerror})"
            ) from error
        self.seed, self.classes, self.on_unknown, self.min_side = seed, classes, on_unknown, min_side
        self._read_for: tuple[str, ...] = ()
        self._boxes = torch.zeros(0, 4)  # (n, 4) xyxy, fractions of the image
        self._labels = torch.zeros(0, dtype=torch.int64)
        self._image = torch.zeros(0, dtype=torch.int64)  # of each box, ascending

    def __call__(
        self, count: int, classes: Sequence[str], image_size: tuple[int, int], generator: torch.Generator
    ) -> list[Target]:
        if self._read_for != tuple(classes):
            self._read(classes)
        height, width = image_size
        boxes = self._boxes * self._boxes.new_tensor([width, height, width, height])
        wide = (boxes[:, 2:] - boxes[:, :2] >= self.min_side).all(1)
        boxes, labels = boxes[wide], self._labels[wide]
        _, sizes = torch.unique_consecutive(self._image[wide], return_counts=True)
        if not len(sizes):
            raise InputError(
                f"{self.path}: expected boxes of at least {self.min_side} px a side in images of {width}x{height} px, found none"
            )
        starts = sizes.cumsum(0) - sizes
        drawn = torch.cat([torch.randperm(len(sizes), generator=generator) for _ in range(-(-count // len(sizes)))])
        spans = [slice(int(starts[i]), int(starts[i] + sizes[i])) for i in drawn[:count]]
        return [{"boxes": boxes[span].clone(), "labels": labels[span].clone()} for span in spans]

    def _read(self, classes: Sequence[str]) -> None:
        """Keep all boxes that may be drawn, as fractions of their image."""
        wanted = torch.tensor(labels_of(self.classes, classes))
        read = read_boxes(self.path, classes, on_unknown=self.on_unknown, invalid_boxes="drop")
        read = [(size, truth) for size, truth in read if len(truth["boxes"])]
        if read:
            image, boxes, labels = join_targets([truth for _, truth in read])
            keep = torch.isin(labels, wanted) & ~torch.cat([truth["iscrowd"] for _, truth in read])
            extent = torch.tensor([[width, height, width, height] for (height, width), _ in read])[image]
            self._boxes, self._labels, self._image = (boxes / extent)[keep], labels[keep], image[keep]
        if not read or not len(self._boxes):
            of = "the teacher's classes" if self.classes is None else f"the classes {list(self.classes)}"
            raise InputError(f"{self.path}: expected boxes of {of}, found none")
        self._read_for = tuple(classes)
