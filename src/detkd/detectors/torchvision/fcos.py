"""FCOS (Tian et al., ICCV 2019, and arXiv 2006.09214) of torchvision, with any ResNet of any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkd.boxes import clip_xyxy
from detkd.detectors.torchvision.anchors import PaddedAnchors
from detkd.detectors.torchvision.architecture import Architecture, find_architecture, table_of
from detkd.detectors.torchvision.backbones import check_backbone, freeze_norms, resnet_fpn
from detkd.detectors.torchvision.base import (
    check_count,
    check_published,
    flatten_levels,
    head_targets,
)
from detkd.detectors.torchvision.dense import STRIDES, DenseDetector
from detkd.detectors.torchvision.detector import make_settings
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.weights import load_published
from detkd.structures import Prediction, Resize, Target

ARCHITECTURES = table_of(
    Architecture("fcos_resnet50_fpn", "resnet50", STRIDES, score_threshold=0.2, nms_iou=0.6, frozen_norms=True)
)


class FCOS(DenseDetector):
    """torchvision's FCOS as a :class:`~detkd.detectors.protocol.Detector`.

    ``raw`` is {cls: (B, N, classes), box: (B, N, 4), ctr: (B, N, 1)}; box holds the distances to left, top, right and bottom in strides,
    already rectified, as torchvision's head gives them. Features are backbone stages c3 to c5 and pyramid maps p3 to p7.
    Heads are GroupNorm, so ``norms()`` covers the backbone.

    Args:
        architecture: fcos_resnet50_fpn.
        classes: class names; may be left out with ``coco91`` or ``weights``.
        image_size: (height, width) that images are brought to; None: (800, 800).
        resize: how. mean, std: of normalisation; None: torchvision's.
        weights: member of torchvision's weights enum ("COCO_V1"); implies ``coco91`` and the norms those weights were trained with.
        coco91: the head has torchvision's 91 COCO columns; labels are the 80 classes.
        score_threshold, nms_iou, max_detections: of decoding; None: torchvision's.
        box_gain, cls_gain, ctr_gain: factors on the parts of the loss.
        backbone: resnet18, 34, 50, 101 or 152; None: resnet50. channels: of pyramid and heads. width: factor on the backbone's channels.
        frozen_norms, frozen_eps: FrozenBatchNorm2d of that eps in the backbone instead of trainable BatchNorm2d.

    Raises InputError on unknown names, missing classes, and weights that cannot be had or do not fit the other arguments.
    """

    def __init__(
        self,
        architecture: str = "fcos_resnet50_fpn",
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
        ctr_gain: float = 1.0,
        backbone: str | None = None,
        channels: int = 256,
        width: float = 1.0,
        frozen_norms: bool = False,
        frozen_eps: float = 1e-5,
    ) -> None:
        own = find_architecture(architecture, ARCHITECTURES)
        body = check_backbone(own.backbone, backbone, width, channels)
        if weights is not None:
            changed = {"channels": channels != 256, "width": width != 1.0}
            check_published(own, backbone=body != own.backbone, **changed)
            coco91, frozen_norms, frozen_eps = True, own.frozen_norms, own.frozen_eps
        labels = make_head_labels(classes, coco91, background=False)
        model = _build(labels.width, body, channels, width)
        if frozen_norms:
            freeze_norms(model.backbone, frozen_eps)
        if weights is not None:
            load_published(model, architecture, weights)
        super().__init__(
            model,
            make_settings(own, labels, image_size, resize, mean, std, score_threshold, nms_iou, max_detections),
            gains={"box": box_gain, "cls": cls_gain, "ctr": ctr_gain},
            built={
                "architecture": architecture,
                "weights": None,
                "coco91": coco91,
                "backbone": body,
                "channels": channels,
                "width": width,
                "frozen_norms": frozen_norms,
                "frozen_eps": frozen_eps,
            },
        )

    def boxes(self, prediction: Prediction, differentiable: bool = False) -> Tensor:
        """(B, N, 4) xyxy boxes of all sites in pixels, clipped to the image; ``differentiable``: not clipped, with gradient."""
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            output, anchors = self._head_output(prediction)
            boxes: Tensor = self.model.box_coder.decode(output["bbox_regression"], anchors)
            return boxes if differentiable else clip_xyxy(boxes, prediction.image_size)

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """{box, cls, ctr}: GIoU, focal loss and centre-ness BCE, sums over max(1, positives) of the whole batch, times the gains."""
        check_count(len(prediction), targets)
        output, anchors = self._head_output(prediction)
        wanted = head_targets(targets, self.labels, anchors)
        lengths = [h * w for h, w, _ in prediction.sizes]
        parts = self.model.compute_loss(wanted, output, [anchors] * len(wanted), lengths)
        return {
            "box": self.gains["box"] * parts["bbox_regression"],
            "cls": self.gains["cls"] * parts["classification"],
            "ctr": self.gains["ctr"] * parts["bbox_ctrness"],
        }

    def _regress(self, box: Sequence[Tensor], sites: Sequence[int]) -> dict[str, Tensor]:
        heads = self.model.head.regression_head
        return {
            "box": flatten_levels([heads.bbox_reg(m).relu() for m in box], sites, 4),
            "ctr": flatten_levels([heads.bbox_ctrness(m) for m in box], sites, 1),
        }


def _build(columns: int, backbone: str, channels: int, width: float) -> Any:
    """torchvision's FCOS from scratch, its parts those of torchvision's builder."""
    body = resnet_fpn(backbone, width, channels, first_stage=2, extra=LastLevelP6P7(channels, channels))
    # FCOSHead cannot be told its norms, and its 32 groups do not divide every width: its two towers are put in afterwards.
    norm = partial(nn.GroupNorm, math.gcd(32, channels))
    head = fcos.FCOSHead(channels, 1, columns, num_convs=0)
    head.classification_head = fcos.FCOSClassificationHead(channels, 1, columns, norm_layer=norm)
    head.regression_head = fcos.FCOSRegressionHead(channels, 1, norm_layer=norm)
    # points of torchvision's FCOS: one square of the stride's side a cell
    points = PaddedAnchors([(stride,) for stride in STRIDES], ((1.0,),) * len(STRIDES), STRIDES)
    return fcos.FCOS(body, columns, head=head, anchor_generator=points)
