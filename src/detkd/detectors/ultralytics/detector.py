"""UltralyticsDetector: YOLOv8 and YOLO11 behind the detector interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from detkd.detectors.norms import Norm, find_norms
from detkd.detectors.ultralytics.decode import detections
from detkd.detectors.ultralytics.loss import yolo_loss
from detkd.detectors.ultralytics.network import Plan, build_network, flatten
from detkd.errors import InputError
from detkd.structures import Detection, DetectorSpec, Prediction, Resize, Target


class UltralyticsDetector(nn.Module):
    """A detection model of the ``ultralytics`` package (AGPL-3.0), which is imported here and not before.

    Args:
        classes: names.
        architecture: yolov8 or yolo11 with a scale: "yolov8n", "yolo11x".
        image_size: (height, width) that images are brought to. resize: how.
        width, depth: factors on channels and repeats; None: the architecture's own.
        box_gain, cls_gain, dfl_gain: of the loss. topk, alpha, beta: of its assignment.
        score_threshold, nms_iou, max_detections: of decode; the package's values for validation.

    Raises InputError without the package, naming the pip command, and on unknown names.

    ``raw``: box (B, N, 64), four distributions over 16 bins; cls (B, N, C). ``features``: "c3" to "c5" of the backbone, "p3" to "p5" read
    by the head. ``network`` is the package's own DetectionModel; its tensors have the names that the package gives them.
    """

    def __init__(
        self,
        classes: Sequence[str],
        architecture: str = "yolov8n",
        image_size: Sequence[int] = (640, 640),
        resize: Resize = "letterbox",
        width: float | None = None,
        depth: float | None = None,
        box_gain: float = 7.5,
        cls_gain: float = 0.5,
        dfl_gain: float = 1.5,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        score_threshold: float = 0.001,
        nms_iou: float = 0.7,
        max_detections: int = 300,
    ) -> None:
        super().__init__()
        if len(image_size) != 2:
            raise InputError(f"image_size: expected (height, width), got {list(image_size)}")
        self.spec = DetectorSpec(tuple(classes), (int(image_size[0]), int(image_size[1])), resize=resize)
        self.architecture, self.width, self.depth = architecture, width, depth
        self.gains = {"box": box_gain, "cls": cls_gain, "dfl": dfl_gain}
        self.topk, self.alpha, self.beta = topk, alpha, beta
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self.network = build_network(architecture, self.spec.classes, width, depth)
        self.plan = Plan(self.network)

    def forward(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) RGB images in [0, 1] to a Prediction. Raises InputError on sides that 32 does not divide."""
        height, width = images.shape[-2:]
        coarsest = self.plan.strides[-1]
        if height % coarsest or width % coarsest:
            raise InputError(f"expected an image size that {coarsest} divides, got {height}x{width}")
        box, cls, features = self.plan.run(self.network, images)
        return Prediction(
            raw={"box": flatten(box), "cls": flatten(cls)},
            sizes=tuple((x.shape[-2], x.shape[-1], 1) for x in box),
            strides=self.plan.strides,
            features=features,
            image_size=(height, width),
            geometry=tuple(("distribution", self.plan.bins, stride) for stride in self.plan.strides),
        )

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """{"box", "cls", "dfl"}, float32, with the gains of the constructor."""
        if len(targets) != len(prediction):
            raise ValueError(f"expected one target an image, got {len(targets)} targets for {len(prediction)} images")
        raw = prediction.raw
        parts = yolo_loss(
            raw["box"], raw["cls"], prediction.sizes, prediction.strides, targets, self.topk, self.alpha, self.beta
        )
        return {name: self.gains[name] * part for name, part in parts.items()}

    def decode(self, prediction: Prediction) -> list[Detection]:
        """Detections as the package's own post-processing makes them, best first, clipped to the image."""
        return detections(
            prediction.raw["box"],
            prediction.raw["cls"],
            prediction.sizes,
            prediction.strides,
            prediction.image_size,
            self.score_threshold,
            self.nms_iou,
            self.max_detections,
        )

    def norms(self) -> list[Norm]:
        """BatchNorm layers of backbone, neck and head, in order of definition."""
        return find_norms(self)

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that build this architecture again, without weights."""
        return {
            "classes": list(self.spec.classes),
            "architecture": self.architecture,
            "image_size": list(self.spec.image_size),
            "resize": self.spec.resize,
            "width": self.width,
            "depth": self.depth,
            "box_gain": self.gains["box"],
            "cls_gain": self.gains["cls"],
            "dfl_gain": self.gains["dfl"],
            "topk": self.topk,
            "alpha": self.alpha,
            "beta": self.beta,
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
            "max_detections": self.max_detections,
        }
