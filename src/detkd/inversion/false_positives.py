"""Y_FP sampling: what the teacher sees besides the targets becomes a target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from detkd.boxes import area_xyxy, clip_xyxy
from detkd.errors import InputError
from detkd.structures import Detection, Target


class FalsePositives:
    """Add the teacher's confident detections that belong to no target to the targets, at intervals of the first stage.

    Args:
        every: iterations between samplings; 100 of 2,500 in the released code.
        start: the first one comes once this fraction of the stage is done; the released code waits for 800 of 2500.
        score: detections above it are added.
        iou: those whose IoU with every target of their image is below it, and with every detection added before them.
        area: those of relative area between the two, both excluded.
        remove: targets whose IoU with every detection of their image is below it are taken out first, all but the one of highest
            IoU; an image without detections keeps its targets. None takes none out, as DIODE.
        most: targets an image; detections beyond are not added, and no target is taken out for it.

    Raises InputError on settings under which nothing could ever be added, naming the key.

    Source: DIODE (Chawla et al., WACV 2021), targets Y_FP, with the released values; ``remove`` is from Li et al., Task-Specific
    Zero-shot Quantization-Aware Training for Object Detection (ICCV 2025), who use .35. Departures: detections are clipped to the
    image; those added at once are compared with each other too, whatever their class (NMS within classes leaves two boxes where two
    classes are seen at one place); ``most``; an image where nothing is detected, which ends the released code, stays as it is.
    """

    def __init__(
        self,
        every: int = 25,
        start: float = 0.32,
        score: float = 0.2,
        iou: float = 0.35,
        area: tuple[float, float] = (0.01, 0.85),
        remove: float | None = None,
        most: int = 25,
    ) -> None:
        if every < 1:
            raise InputError(f"sampling.every: expected at least 1 iteration, got {every}")
        if not 0 <= start < 1:
            raise InputError(f"sampling.start: expected a fraction of the stage, 0 <= start < 1, got {start}")
        if not 0 <= score < 1:
            raise InputError(f"sampling.score: expected 0 <= score < 1, got {score}")
        if not 0 < iou <= 1:
            raise InputError(f"sampling.iou: expected 0 < iou <= 1, got {iou}")
        if len(area) != 2 or not 0 <= area[0] < area[1] <= 1:
            raise InputError(f"sampling.area: expected [smallest, largest] with 0 <= smallest < largest <= 1, got {list(area)}")
        if remove is not None and not 0 < remove <= 1:
            raise InputError(f"sampling.remove: expected 0 < remove <= 1, or null, got {remove}")
        if most < 1:
            raise InputError(f"sampling.most: expected at least 1 target an image, got {most}")
        self.every, self.start, self.score, self.iou = every, start, score, iou
        self.area, self.remove, self.most = (area[0], area[1]), remove, most

    def times(self, iterations: int) -> range:
        """When to sample in a stage of ``iterations``, in iterations done.

        The multiples of ``every`` from ``start`` of the stage on, without its end: what is added there has no time to appear.
        Empty where the stage is too short.
        """
        warm_up = math.ceil(self.start * iterations - 1e-6)  # .07 * 100 is a little more than 7
        first = max(1, -(-warm_up // self.every)) * self.every
        return range(first, max(first, iterations), self.every)

    def due(self, iteration: int, iterations: int) -> bool:
        """Whether to sample when ``iteration`` of ``iterations`` are done, counted from 1."""
        return iteration in self.times(iterations)

    def check(self, iterations: int) -> None:
        """Raise InputError where a stage of ``iterations`` is too short for a single sampling."""
        if not self.times(iterations):
            raise InputError(
                f"sampling.every: expected a multiple of it from iteration {self.start} x {iterations} on and before iteration "
                f"{iterations}, the end of the first stage, found none with {self.every}; take a smaller one, or sampling=none"
            )

    @torch.no_grad()
    def __call__(self, targets: Sequence[Target], detections: Sequence[Detection], image_size: tuple[int, int]) -> list[Target]:
        """The targets of each image after sampling: those that stay, in their order, then those added, best first.

        Args:
            targets: one an image; a box without area is no object, it is kept and hinders none.
            detections: the teacher's, of the un-augmented images. image_size: (height, width) in pixels.

        An image's result depends on that image alone. Raises ValueError where targets and detections are not of as many images.
        """
        if len(targets) != len(detections):
            raise ValueError(f"expected detections for {len(targets)} images, got them for {len(detections)}")
        if not targets:
            return []
        # Padded with boxes without area, which are no objects: their IoU is 0, their area is out of range.
        own = _padded([t["boxes"] for t in targets])  # (B, T, 4)
        found = clip_xyxy(_padded([d["boxes"].to(own) for d in detections]), image_size)  # (B, D, 4)
        scores = _padded([d["scores"].to(own) for d in detections])  # (B, D)
        order = scores.argsort(dim=1, descending=True, stable=True)
        scores, found = scores.gather(1, order), found.gather(1, order[..., None].expand_as(found))

        overlap = _iou(found[:, :, None], own[:, None])  # (B, D, T)
        there = torch.arange(own.shape[1], device=own.device) < _counts(targets, own.device)  # (B, T)
        kept = there if self.remove is None else there & (self._seen(overlap, own) | (_counts(detections, own.device) == 0))
        height, width = image_size
        relative = area_xyxy(found) / (height * width)
        free = (scores > self.score) & (relative > self.area[0]) & (relative < self.area[1])
        free &= (overlap * kept[:, None]).amax(2) < self.iou
        room = self.most - ((area_xyxy(own) > 0) & kept).sum(1)
        added = _pick(found, free, room, self.iou)

        labels_own = _padded([t["labels"] for t in targets])
        labels_found = _padded([d["labels"].to(labels_own) for d in detections]).gather(1, order)
        chosen = torch.cat([kept, added], dim=1)  # (B, T + D)
        boxes = torch.cat([own, found], dim=1)[chosen]
        labels = torch.cat([labels_own, labels_found], dim=1)[chosen]
        counts = chosen.sum(1).tolist()
        return [{"boxes": b, "labels": n} for b, n in zip(torch.split(boxes, counts), torch.split(labels, counts), strict=True)]

    def _seen(self, overlap: Tensor, own: Tensor) -> Tensor:
        """Which targets (B, T, 4) a detection overlaps (B, D, T) by ``remove``, and in each image the best of them: (B, T) bool."""
        best = overlap.amax(1) - (area_xyxy(own) <= 0).to(overlap)  # no object is never the best while there is one
        seen = best >= (self.remove or 0.0)
        return seen.scatter(1, best.argmax(1, keepdim=True), True)


def _pick(boxes_xyxy: Tensor, free: Tensor, room: Tensor, iou: float) -> Tensor:
    """Choose greedily, in each image of its own: boxes (B, D, 4), best first, of those that are ``free`` (B, D); (B, D) bool.

    At most ``room`` (B,) an image, none overlapping an earlier one by ``iou`` or more. One round takes one box of every image.
    This is NMS, but torchvision's for a batch shifts boxes by image in float32, so that a result would depend on the others.
    """
    chosen = torch.zeros_like(free)
    for taken in range(min(int(room.max()), free.shape[1])):
        first = free.int().argmax(1, keepdim=True)  # (B, 1)
        able = free.gather(1, first) & (taken < room)[:, None]
        chosen |= torch.zeros_like(free).scatter(1, first, able)
        box = boxes_xyxy.gather(1, first[..., None].expand(-1, -1, 4))  # (B, 1, 4)
        free = free & (_iou(box, boxes_xyxy) < iou)
    return chosen


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """B rows of (n, ...) as one (B, N, ...), filled up with zeros; N is one more than the longest, so never 0."""
    filled = pad_sequence(list(rows), batch_first=True)
    return pad(filled, (0, 0) * (filled.ndim - 2) + (0, 1))


def _counts(targets: Sequence[Target], device: torch.device) -> Tensor:
    """Boxes of each image, (B, 1)."""
    return torch.tensor([len(t["boxes"]) for t in targets], device=device)[:, None]


def _iou(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> Tensor:
    """IoU of boxes (..., 4) that are broadcast against each other; 0 where neither has area."""
    low = torch.maximum(boxes_a_xyxy[..., :2], boxes_b_xyxy[..., :2])
    high = torch.minimum(boxes_a_xyxy[..., 2:], boxes_b_xyxy[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = area_xyxy(boxes_a_xyxy) + area_xyxy(boxes_b_xyxy) - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)
