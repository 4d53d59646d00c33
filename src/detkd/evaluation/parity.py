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
_SAME_IOU = 0.9


@dataclass
class Difference:
    """Of an output, over all values seen: the largest absolute difference, and the largest over ``atol`` + RTOL * |expected|."""

    atol: float = ATOL
    absolute: float = 0.0
    over_tolerance: float = 0.0

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Take in another pair of tensors of one shape. Values that are not finite on one side alone are infinitely far."""
        expected, found = expected.detach().double(), found.detach().double()
        if expected.shape != found.shape:
            raise ValueError(f"expected the shape {tuple(expected.shape)}, got {tuple(found.shape)}")
        if not expected.numel():
            return
        same = expected == found
        apart = torch.where(same, torch.zeros_like(expected), (expected - found).abs())
        apart = torch.where(same | (expected.isfinite() & found.isfinite()), apart, torch.inf)
        allowed = self.atol + RTOL * torch.where(expected.isfinite(), expected.abs(), 0)
        self.absolute = max(self.absolute, float(apart.max()))
        self.over_tolerance = max(self.over_tolerance, float((apart / allowed).max()))


@dataclass
class Matches:
    """Of detections, over all images seen: how many there are on both sides, how many are alone, and the largest differences of the others."""

    matched: int = 0
    expected_alone: int = 0
    found_alone: int = 0
    box: float = 0.0
    score: float = 0.0

    def add(self, expected: Detection, found: Detection) -> None:
        """Take in one image. Each expected detection, best first, is paired with the free one of its label and an IoU over 0.9 whose box is nearest."""
        free = torch.ones(len(found["boxes"]), dtype=torch.bool)
        if len(expected["boxes"]) and len(found["boxes"]):
            same = expected["labels"][:, None] == found["labels"][None]  # (n, m)
            apart = (expected["boxes"][:, None] - found["boxes"][None]).abs().amax(-1).double()  # (n, m)
            overlap = box_iou(expected["boxes"].double(), found["boxes"].double())
            close = same & ((overlap > _SAME_IOU) | (apart <= BOX))  # a box without area has no overlap, but has a place
            apart = apart + (expected["scores"][:, None] - found["scores"][None]).abs()  # equal boxes: the nearer score
        for i in range(len(expected["boxes"])):
            options = torch.where(close[i] & free, apart[i], torch.inf) if len(free) else torch.empty(0)
            if not len(options) or not options.min() < torch.inf:
                self.expected_alone += 1
                continue
            j = int(options.argmin())
            free[j] = False
            self.matched += 1
            self.box = max(self.box, float((expected["boxes"][i] - found["boxes"][j]).abs().max()))
            self.score = max(self.score, float((expected["scores"][i] - found["scores"][j]).abs()))
        self.found_alone += int(free.sum())


@dataclass
class Parity:
    """What :func:`detkd.runtime.export` compares: raw outputs by name, and detections."""

    outputs: dict[str, Difference] = field(default_factory=dict)
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
            self.outputs.setdefault(name, Difference(BOX if name == "boxes" else ATOL)).add(value, found[name])
        for one, other in zip(expected_detections, found_detections, strict=True):
            self.detections.add(one, other)

    def failures(self) -> list[str]:
        """What is beyond the tolerances, in words; none where all is well."""
        words = [
            f"{name} differs by {of.absolute:.3g}, {of.over_tolerance:.3g} times its tolerance"
            for name, of in self.outputs.items()
            if of.over_tolerance > 1
        ]
        of_all = self.detections
        alone, whole = (
            of_all.expected_alone + of_all.found_alone,
            2 * of_all.matched + of_all.expected_alone + of_all.found_alone,
        )
        if alone > UNMATCHED * whole:
            words.append(f"{alone} of {whole} detections are on one side alone")
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
        of_all = self.detections
        parts = [f"{name} {of.absolute:.2g}" for name, of in self.outputs.items()]
        alone = of_all.expected_alone + of_all.found_alone
        parts.append(
            f"{of_all.matched} detections matched, {alone} alone: boxes {of_all.box:.2g} px, scores {of_all.score:.2g}"
        )
        return "; ".join(parts)
