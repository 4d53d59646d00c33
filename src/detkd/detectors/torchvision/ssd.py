"""SSD (Liu et al., ECCV 2016) and SSDlite of torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.ops import box_iou

from detkd.detectors.torchvision.architecture import Architecture, find_architecture, table_of
from detkd.detectors.torchvision.base import (
    check_count,
    head_targets,
    level_names,
    level_sizes,
    size_of,
)
from detkd.detectors.torchvision.detector import TorchvisionDetector, make_settings
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.weights import load_published
from detkd.errors import InputError
from detkd.structures import Detection, Prediction, Resize, Target

ARCHITECTURES = table_of(
    Architecture(
        "ssd300_vgg16",
        "vgg16",
        strides=(8, 16, 32, 64, 100, 300),
        image_size=(300, 300),
        mean=(0.48235, 0.45882, 0.40784),
        std=(1 / 255, 1 / 255, 1 / 255),
        score_threshold=0.01,
        nms_iou=0.45,
        max_detections=200,
    ),
    Architecture(
        "ssdlite320_mobilenet_v3_large",
        "mobilenet_v3_large",
        strides=(16, 32, 64, 128, 256, 512),
        image_size=(320, 320),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        score_threshold=0.001,
        nms_iou=0.55,
        max_detections=300,
    ),
)
_BUILDERS = {"ssd300_vgg16": ssd300_vgg16, "ssdlite320_mobilenet_v3_large": ssdlite320_mobilenet_v3_large}
# The last two convolutions of SSD300 have no padding: smaller images leave them nothing to look at.
_SSD300_SMALLEST = 268


class SSD(TorchvisionDetector):
    """torchvision's SSD300-VGG16 or SSDlite320-MobileNetV3 as a :class:`~detkd.detectors.protocol.Detector`.

    ``raw`` is {cls: (B, N, 1 + classes), background first, box: (B, N, 4)}; features are the six maps the heads read, "p3" or "p4" on.
    SSD300 has no norms with statistics; the norms of SSDlite's heads count.

    Args:
        architecture: ssd300_vgg16 or ssdlite320_mobilenet_v3_large.
        classes: class names; may be left out with ``coco91`` or ``weights``.
        image_size: (height, width) that images are brought to; None: (300, 300) or (320, 320). SSD300 takes no side below 268 px.
        resize: how. mean, std: of normalisation; None: torchvision's.
        weights: member of torchvision's weights enum ("COCO_V1"); implies ``coco91``.
        coco91: the head has torchvision's 91 COCO columns; labels are the 80 classes.
        score_threshold, nms_iou, max_detections: of decoding; None: torchvision's.
        box_gain, cls_gain: factors on the parts of the loss.

    Raises InputError on unknown names, missing classes, and weights that cannot be had.
    """

    def __init__(
        self,
        architecture: str = "ssdlite320_mobilenet_v3_large",
        classes: Sequence[str] | None = None,
        image_size: Sequence[int] | None = None,
        resize: Resize = "stretch",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        weights: str | None = None,
        coco91: bool = False,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        box_gain: float = 1.0,
        cls_gain: float = 1.0,
    ) -> None:
        own = find_architecture(architecture, ARCHITECTURES)
        coco91 = coco91 or weights is not None
        labels = make_head_labels(classes, coco91, background=True)
        model = _BUILDERS[architecture](weights=None, weights_backbone=None, num_classes=labels.width)
        if weights is not None:
            load_published(model, architecture, weights)
        super().__init__(
            model,
            make_settings(own, labels, image_size, resize, mean, std, score_threshold, nms_iou, max_detections),
            gains={"box": box_gain, "cls": cls_gain},
            built={"architecture": architecture, "weights": None, "coco91": coco91},
        )

    def forward(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) RGB images in [0, 1] to a Prediction. Raises InputError on sides that SSD300 cannot take."""
        if self.architecture.name == "ssd300_vgg16" and min(size_of(images)) < _SSD300_SMALLEST:
            raise InputError(f"expected images of at least {_SSD300_SMALLEST} px for ssd300_vgg16, got {size_of(images)}")
        maps = list(self.model.backbone(self.normalise(images)).values())
        output = self.model.head(maps)
        logits = output["cls_logits"]  # (B, N, width)
        return Prediction(
            raw={"cls": self.labels.select(logits), "box": output["bbox_regression"]},
            sizes=level_sizes(maps, self.model.anchor_generator.num_anchors_per_location()),
            strides=self.architecture.strides,
            features=dict(zip(level_names("p", self.architecture.strides), maps)),
            image_size=size_of(images),
            state={} if self.labels.complete else {"logits": logits},
        )

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """{box, cls}: smooth L1 and cross-entropy with hard negatives 3:1, over the positives of the batch, times the gains.

        Without any box in the batch there are no hard negatives either: both parts are 0, as in torchvision.
        """
        check_count(len(prediction), targets)
        output, anchors = self._head_output(prediction)
        wanted = head_targets(targets, self.labels, anchors)
        matched = [
            self.model.proposal_matcher(box_iou(t["boxes"], anchors))
            if len(t["boxes"])
            else torch.full((len(anchors),), -1, device=anchors.device)
            for t in wanted
        ]
        parts = self.model.compute_loss(wanted, output, [anchors] * len(wanted), matched)
        return {"box": self.gains["box"] * parts["bbox_regression"], "cls": self.gains["cls"] * parts["classification"]}

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        """Detections as torchvision's own, one an image; of a 91-column head those of the 80 classes."""
        output, anchors = self._head_output(prediction)
        count = len(prediction)
        found = self.model.postprocess_detections(output, [anchors] * count, [prediction.image_size] * count)
        return [self.labels.to_detection(f) for f in found]
