"""What every adapter of a torchvision network has: a spec, the labels of its head, gains, and the settings of decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from detkd.detectors.norms import Norm, find_norms
from detkd.detectors.torchvision.architecture import Architecture, make_spec
from detkd.detectors.torchvision.base import Normalise, anchors_of, in_float
from detkd.detectors.torchvision.labels import HeadLabels
from detkd.structures import DetectorSpec, Prediction, Resize

_OUTPUTS = {"cls": "cls_logits", "box": "bbox_regression", "ctr": "bbox_ctrness"}  # torchvision's names


@dataclass(frozen=True)
class Settings:
    """What does not depend on the family.

    Args:
        own: the architecture. labels: of the head. spec: of the detector. score_threshold, nms_iou, max_detections: of decoding.
    """

    own: Architecture
    labels: HeadLabels
    spec: DetectorSpec
    score_threshold: float
    nms_iou: float
    max_detections: int


def make_settings(
    own: Architecture,
    labels: HeadLabels,
    image_size: Sequence[int] | None,
    resize: Resize,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    score_threshold: float | None,
    nms_iou: float | None,
    max_detections: int | None,
) -> Settings:
    """Settings in which None stands for the architecture's own value. Raises InputError as :func:`make_spec`."""
    return Settings(
        own,
        labels,
        make_spec(own, labels.classes, image_size, resize, mean, std),
        own.score_threshold if score_threshold is None else score_threshold,
        own.nms_iou if nms_iou is None else nms_iou,
        own.max_detections if max_detections is None else max_detections,
    )


class TorchvisionDetector(nn.Module):
    """The part of a :class:`~detkd.detectors.protocol.Detector` that does not depend on the family.

    Args:
        model: torchvision's network.
        settings: of the detector.
        gains: factors on the parts of the loss; NAME is the constructor argument NAME_gain.
        built: the constructor arguments that are the family's own, as :meth:`arguments` gives them back.
    """

    def __init__(self, model: Any, settings: Settings, gains: Mapping[str, float], built: Mapping[str, Any]) -> None:
        super().__init__()
        self.architecture, self.labels, self.spec = settings.own, settings.labels, settings.spec
        self.gains, self._built = dict(gains), dict(built)
        self.normalise = Normalise(settings.spec)
        self.model = model
        for module in self._decoders():
            module.score_thresh = settings.score_threshold
            module.nms_thresh = settings.nms_iou
            module.detections_per_img = settings.max_detections

    def norms(self) -> list[Norm]:
        """BatchNorm and FrozenBatchNorm layers with statistics of whole images, in order of definition."""
        return find_norms(self)

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that build this architecture again, without weights."""
        decoder = self._decoders()[-1]
        return {
            "classes": list(self.spec.classes),
            "image_size": list(self.spec.image_size),
            "resize": self.spec.resize,
            "mean": list(self.spec.mean),
            "std": list(self.spec.std),
            "score_threshold": decoder.score_thresh,
            "nms_iou": decoder.nms_thresh,
            "max_detections": decoder.detections_per_img,
            **{f"{name}_gain": gain for name, gain in self.gains.items()},
            **self._built,
        }

    def _decoders(self) -> Sequence[Any]:
        """The modules in which torchvision keeps the settings of decoding, the one that decodes last."""
        return [self.model]

    def _head_output(self, prediction: Prediction) -> tuple[dict[str, Tensor], Tensor]:
        """A one-stage head's output as torchvision names it, all columns, and the anchors (N, 4) of one image."""
        raw = prediction.raw | {"cls": prediction.state.get("logits", prediction.raw["cls"])}
        anchors = anchors_of(self.model.anchor_generator, prediction.sizes, prediction.image_size, raw["cls"].device)
        return {_OUTPUTS[name]: in_float(values) for name, values in raw.items()}, anchors
