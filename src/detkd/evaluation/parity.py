"""How far another runtime's outputs are from the detector's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detkd.structures import Detection

RTOL, ATOL = 1e-3, 1e-4  # of outputs, relative, and near zero; of boxes, near zero it is BOX
BOX, SCORE = 0.01, 1e-4  # of matched detections: px, and absolute
UNMATCHED = 0.01  # largest share of detections that the other side does not have
# The same of proposals. Equal scores all over an even image may be ranked either way (8 of 400 on grey ones); what the ranking goes by
# is compared by site.
UNMATCHED_ROWS = 0.05
_SAME_IOU = 0.9
_IN_PIXELS = ("boxes", "raw_proposals")


def pair(apart: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns of (n, m) distances, each at most once: every row in turn with the free column nearest to it; infinite is too far."""
    rows: list[int] = []
    columns: list[int] = []
    free = torch.ones(apart.shape[1], dtype=torch.bool)
    for row, distances in enumerate(apart):
        options = torch.where(free, distances, torch.inf)
        if len(options) and options.min() < torch.inf:
            columns.append(int(options.argmin()))
            rows.append(row)
            free[columns[-1]] = False
    return rows, columns


@dataclass
class Difference:
    """Of an output, over all ``values`` seen: the largest absolute difference, and the largest over ``atol`` + RTOL * |expected|."""

    atol: float = ATOL
    values: int = 0
    absolute: float = 0.0
    over_tolerance: float = 0.0

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Take in another pair of tensors of one shape. Values that are not finite on one side alone are infinitely far."""
        expected, found = expected.detach().double(), found.detach().double()
        if expected.shape != found.shape:
            raise ValueError(f"expected the shape {tuple(expected.shape)}, got {tuple(found.shape)}")
        if not expected.numel():
            return
        self.values += expected.numel()
        same = expected == found
        apart = torch.where(same, torch.zeros_like(expected), (expected - found).abs())
        apart = torch.where(same | (expected.isfinite() & found.isfinite()), apart, torch.inf)
        allowed = self.atol + RTOL * torch.where(expected.isfinite(), expected.abs(), 0)
        self.absolute = max(self.absolute, float(apart.max()))
        self.over_tolerance = max(self.over_tolerance, float((apart / allowed).max()))


@dataclass
class Matches:
    """Of detections, over all images seen: how many there are on both sides, how many are alone, and the largest differences of the others.

    by_image: how many are expected of each.
    """

    matched: int = 0
    expected_alone: int = 0
    found_alone: int = 0
    box: float = 0.0
    score: float = 0.0
    by_image: list[int] = field(default_factory=list)

    def add(self, expected: Detection, found: Detection) -> None:
        """Take in one image. Each expected detection, best first, is paired with the free one of its label and an IoU over 0.9 whose box is nearest."""
        same = expected["labels"][:, None] == found["labels"][None]  # (n, m)
        apart = (expected["boxes"][:, None] - found["boxes"][None]).abs().amax(-1).double()  # (n, m)
        overlap = box_iou(expected["boxes"].double(), found["boxes"].double())
        close = same & ((overlap > _SAME_IOU) | (apart <= BOX))  # a box without area has no overlap, but has a place
        apart = apart + (expected["scores"][:, None] - found["scores"][None]).abs()  # equal boxes: the nearer score
        i, j = pair(torch.where(close, apart, torch.inf))
        self.by_image.append(len(expected["boxes"]))
        self.matched += len(i)
        self.expected_alone += len(expected["boxes"]) - len(i)
        self.found_alone += len(found["boxes"]) - len(j)
        if i:
            self.box = max(self.box, float((expected["boxes"][i] - found["boxes"][j]).abs().max()))
            self.score = max(self.score, float((expected["scores"][i] - found["scores"][j]).abs().max()))


@dataclass
class Rows:
    """Of a two-stage detector's proposals, over all images seen: how many there are on both sides, and how many are alone."""

    matched: int = 0
    expected_alone: int = 0
    found_alone: int = 0

    def add(self, expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the places of one image's rows, xyxy pixels (R, D) with one or more boxes each, and return indices of those in one place.

        In one place are rows whose coordinates are at most BOX + RTOL * the largest of them apart. Rows of zeros are none.
        """
        own, other = (places.any(-1).nonzero()[:, 0] for places in (expected, found))
        first, second = expected[own].double(), found[other].double()
        apart = torch.cdist(first, second, p=torch.inf)  # (n, m)
        allowed = BOX + RTOL * first.abs().amax(-1, keepdim=True)  # (n, 1)
        i, j = pair(torch.where(apart <= allowed, apart, torch.inf))
        self.matched += len(i)
        self.expected_alone += len(own) - len(i)
        self.found_alone += len(other) - len(j)
        return own[i], other[j]


@dataclass
class Parity:
    """What :func:`detkd.runtime.export` compares: outputs by name, rows of proposals, and detections."""

    outputs: dict[str, Difference] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)
    detections: Matches = field(default_factory=Matches)

    def add(
        self,
        expected: Mapping[str, Tensor],
        found: Mapping[str, Tensor],
        expected_detections: Sequence[Detection],
        found_detections: Sequence[Detection],
    ) -> None:
        """Take in a batch: outputs by name, those of ``expected`` alone, and detections, one an image."""
        for name, value in expected.items():
            self._output(name).add(value, found[name])
        for one, other in zip(expected_detections, found_detections, strict=True):
            self.detections.add(one, other)

    def add_rows(self, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str) -> None:
        """Take in outputs (1, R, ...) of one image that have a row a proposal, in any order: rows are paired by that of name ``place``.

        ``place`` holds boxes, xyxy in pixels. Compared are the outputs of ``expected`` alone.
        """
        own, other = self.rows.add(expected[place][0].flatten(1), found[place][0].flatten(1))  # (R, 4) or (R, C, 4) -> (R, D)
        for name, value in expected.items():
            self._output(name).add(value[0, own], found[name][0, other])

    def _output(self, name: str) -> Difference:
        return self.outputs.setdefault(name, Difference(BOX if name in _IN_PIXELS else ATOL))

    def passed(self) -> bool | None:
        """Whether all is within the tolerances; None where nothing that a file gives was there to compare.

        That is boxes and scores of sites or proposals, or detections; raw outputs alone are not what a file gives.
        """
        if self.failures():
            return False
        scores = self.outputs.get("scores")
        return True if self.detections.matched or (scores is not None and scores.values) else None

    def failures(self) -> list[str]:
        """What is beyond the tolerances, in words; none where all is well."""
        words = [
            f"{name} differs by {of.absolute:.3g}, {of.over_tolerance:.3g} times its tolerance"
            for name, of in self.outputs.items()
            if of.over_tolerance > 1
        ]
        of_all = self.detections
        for what, counts, most in (("proposals", self.rows, UNMATCHED_ROWS), ("detections", of_all, UNMATCHED)):
            alone = counts.expected_alone + counts.found_alone
            whole = 2 * counts.matched + alone
            if alone > most * whole:
                words.append(f"{alone} of {whole} {what} are on one side alone")
        if of_all.box > BOX:
            words.append(f"matched boxes differ by {of_all.box:.3g} px, more than {BOX}")
        if of_all.score > SCORE:
            words.append(f"matched scores differ by {of_all.score:.3g}, more than {SCORE}")
        return words

    def to_dict(self) -> dict[str, Any]:
        """As json-able values."""
        return asdict(self)

    def line(self) -> str:
        """One line for the terminal."""
        of_rows, of_all = self.rows, self.detections
        parts = [f"{name} {of.absolute:.2g}" for name, of in self.outputs.items()]
        if of_rows.matched:
            parts.append(f"{of_rows.matched} proposals matched, {of_rows.expected_alone + of_rows.found_alone} alone")
        alone = of_all.expected_alone + of_all.found_alone
        parts.append(
            f"{of_all.matched} detections matched, {alone} alone: boxes {of_all.box:.2g} px, scores {of_all.score:.2g}"
        )
        return "; ".join(parts)
