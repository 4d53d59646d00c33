"""A one-stage detector as a graph: images to the boxes and scores of all sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from detkd.boxes import clip_xyxy
from detkd.detectors.darknet.detector import DarknetDetector
from detkd.detectors.deploy.selection import Candidates, above, best_of_classes, best_of_levels, best_pairs, keep_best
from detkd.detectors.torchvision import FCOS, SSD, RetinaNet
from detkd.detectors.torchvision.base import anchors_of
from detkd.structures import Prediction

Scored = tuple[Tensor, Tensor]


class OneStageGraph(nn.Module):
    """Images (B, 3, H, W) to boxes (B, N, 4), xyxy in pixels and clipped to the image, and scores (B, N, C) in [0, 1].

    Args:
        detector: of one of the families of ``READERS``, in eval mode.
        lengths: how many sites each level has at the detector's image size.
        nms: after suppression instead, as the detector decodes: boxes (B, D, 4), scores (B, D), labels (B, D), see
            :func:`~detkd.detectors.deploy.selection.keep_best`.
        raw: outputs follow: the head's, as in ``Prediction.raw`` by sorted name.
    """

    def __init__(self, detector: Any, lengths: Sequence[int], nms: bool = False, raw: bool = False) -> None:
        super().__init__()
        self.detector, self.lengths, self.nms, self.raw = detector, tuple(lengths), nms, raw
        self.settings = detector.arguments()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        prediction = self.detector(images)
        read, _ = READERS[type(self.detector).__name__]
        out: tuple[Tensor, ...] = read(self.detector, prediction)
        if self.nms:
            out = tuple(self.select(*out))  # a file knows no named tuples
        return (*out, *(prediction.raw[name] for name in sorted(prediction.raw))) if self.raw else out

    def select(self, boxes: Tensor, scores: Tensor) -> Candidates:
        """What suppression leaves of all boxes (B, N, 4) and scores (B, N, C), with the detector's own settings."""
        _, choose = READERS[type(self.detector).__name__]
        chosen = choose(self.detector, boxes, above(scores, self.settings["score_threshold"]), self.lengths)
        return keep_best(chosen, scores.shape[2], self.settings["nms_iou"], self.settings["max_detections"])


def _darknet(detector: DarknetDetector, prediction: Prediction) -> Scored:
    return detector.boxes(prediction), prediction.raw["obj"].sigmoid() * prediction.raw["cls"].sigmoid()


def _pairs(detector: DarknetDetector, boxes: Tensor, scores: Tensor, lengths: Sequence[int]) -> Candidates:
    return best_pairs(boxes, scores, detector.candidates)


def _from_anchors(detector: Any, prediction: Prediction) -> Tensor:
    deltas = prediction.raw["box"]  # (B, N, 4)
    anchors = anchors_of(detector.model.anchor_generator, prediction.sizes, prediction.image_size, deltas.device)
    every = anchors[None].expand_as(deltas)
    boxes = detector.model.box_coder.decode_single(deltas.flatten(0, 1), every.flatten(0, 1)).view_as(deltas)
    return clip_xyxy(boxes, prediction.image_size)


def _ssd(detector: SSD, prediction: Prediction) -> Scored:
    logits = prediction.state.get("logits", prediction.raw["cls"])  # all columns of the head take part in the softmax
    return _from_anchors(detector, prediction), logits.softmax(-1)[..., list(detector.labels.columns)]


def _of_classes(detector: SSD, boxes: Tensor, scores: Tensor, lengths: Sequence[int]) -> Candidates:
    return best_of_classes(boxes, scores, detector.model.topk_candidates)


def _retinanet(detector: RetinaNet, prediction: Prediction) -> Scored:
    return _from_anchors(detector, prediction), prediction.raw["cls"].sigmoid()


def _fcos(detector: FCOS, prediction: Prediction) -> Scored:
    scores = (prediction.raw["cls"].sigmoid() * prediction.raw["ctr"].sigmoid()).sqrt()
    return detector.boxes(prediction), scores


def _of_levels(detector: Any, boxes: Tensor, scores: Tensor, lengths: Sequence[int]) -> Candidates:
    return best_of_levels(boxes, scores, detector.model.topk_candidates, lengths)


Reader = Callable[[Any, Prediction], Scored]
Chooser = Callable[[Any, Tensor, Tensor, Sequence[int]], Candidates]
# By class: how its boxes and scores are read, and which of them enter suppression, as its ``decode`` has them.
READERS: dict[str, tuple[Reader, Chooser]] = {
    "DarknetDetector": (_darknet, _pairs),
    "SSD": (_ssd, _of_classes),
    "RetinaNet": (_retinanet, _of_levels),
    "FCOS": (_fcos, _of_levels),
}
