"""RetinaNet (Lin et al., ICCV 2017) of torchvision, v1 and v2, with any ResNet of any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkd.boxes import clip_xyxy
from detkd.detectors.torchvision.anchors import ExactAnchors, PaddedAnchors
from detkd.detectors.torchvision.architecture import (
    Architecture,
    Conventions,
    check_conventions,
    find_architecture,
    table_of,
)
from detkd.detectors.torchvision.backbones import check_backbone, freeze_norms, resnet_fpn, stage_channels
from detkd.detectors.torchvision.base import (
    check_count,
    check_published,
    head_targets,
)
from detkd.detectors.torchvision.dense import STRIDES, DenseDetector
from detkd.detectors.torchvision.detector import make_settings
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.weights import load_published
from detkd.errors import InputError
from detkd.structures import Prediction, Resize, Target

_RATIOS = (0.5, 1.0, 2.0)
P6From = Literal["p5", "c5"]
_V1, _V2 = "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"
ARCHITECTURES = table_of(
    Architecture(_V1, "resnet50", STRIDES, max_detections=300, frozen_norms=True, frozen_eps=0.0),
    Architecture(_V2, "resnet50", STRIDES, max_detections=300),
)


class RetinaNet(DenseDetector):
    """torchvision's RetinaNet as a :class:`~detkd.detectors.protocol.Detector`.

    ``raw`` is {cls: (B, N, classes), box: (B, N, 4)}; features are backbone stages c3 to c5 and pyramid maps p3 to p7.
    Heads are without norms (v1) or GroupNorm (v2), so ``norms()`` covers the backbone.

    Args:
        architecture: retinanet_resnet50_fpn (L1 boxes, p6 from p5) or retinanet_resnet50_fpn_v2 (GIoU, GroupNorm heads, p6 from c5).
        classes: class names; may be left out with ``coco91`` or ``weights``.
        image_size: (height, width) that images are brought to; None: (800, 800).
        resize: how. mean, std: of normalisation; None: torchvision's.
        weights: member of torchvision's weights enum ("COCO_V1"); implies ``coco91`` and the norms those weights were trained with.
        coco91: the head has torchvision's 91 COCO columns; labels are the 80 classes.
        score_threshold, nms_iou, max_detections: of decoding; None: torchvision's.
        box_gain, cls_gain: factors on the parts of the loss.
        backbone: resnet18, 34, 50, 101 or 152; None: resnet50. channels: of pyramid and heads. width: factor on the backbone's channels.
        anchor_size: side in pixels of the smallest anchors, doubled level by level.
        frozen_norms, frozen_eps: FrozenBatchNorm2d of that eps in the backbone instead of trainable BatchNorm2d.
        p6_from: "p5" or "c5", what the level above p5 is made from; None: the architecture's own.
        conventions: torchvision's, or MMDetection's (anchors of exact sides, a stride apart; no ReLU between p6 and p7). They go with
            weights that were trained so.

    Raises InputError on unknown names, missing classes, and weights that cannot be had or do not fit the other arguments.
    """

    def __init__(
        self,
        architecture: str = _V1,
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
        backbone: str | None = None,
        channels: int = 256,
        width: float = 1.0,
        anchor_size: int = 32,
        frozen_norms: bool = False,
        frozen_eps: float = 1e-5,
        p6_from: P6From | None = None,
        conventions: Conventions = "torchvision",
    ) -> None:
        own = find_architecture(architecture, ARCHITECTURES)
        body = check_backbone(own.backbone, backbone, width, channels)
        check_conventions(conventions, body)
        if weights is not None:
            changed = {"channels": channels != 256, "width": width != 1.0, "anchor_size": anchor_size != 32}
            changed |= {"p6_from": p6_from is not None, "conventions": conventions != "torchvision"}
            check_published(own, backbone=body != own.backbone, **changed)
            coco91, frozen_norms, frozen_eps = True, own.frozen_norms, own.frozen_eps
        if p6_from not in (None, *get_args(P6From)):
            raise InputError(f"p6_from: expected p5, c5 or null, got {p6_from!r}")
        labels = make_head_labels(classes, coco91, background=False)
        model = _build(architecture, labels.width, body, channels, width, anchor_size, p6_from, conventions)
        if frozen_norms:
            freeze_norms(model.backbone, frozen_eps)
        if weights is not None:
            load_published(model, architecture, weights)
        super().__init__(
            model,
            make_settings(own, labels, image_size, resize, mean, std, score_threshold, nms_iou, max_detections),
            gains={"box": box_gain, "cls": cls_gain},
            built={
                "architecture": architecture,
                "weights": None,
                "coco91": coco91,
                "backbone": body,
                "channels": channels,
                "width": width,
                "anchor_size": anchor_size,
                "frozen_norms": frozen_norms,
                "frozen_eps": frozen_eps,
                "p6_from": p6_from,
                "conventions": conventions,
            },
        )

    def boxes(self, prediction: Prediction, differentiable: bool = False) -> Tensor:
        """(B, N, 4) xyxy boxes of all sites in pixels, clipped to the image; ``differentiable``: not clipped, with gradient."""
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            output, anchors = self._head_output(prediction)
            deltas = output["bbox_regression"].flatten(0, 1)  # (B*N, 4)
            decoded = self.model.box_coder.decode_single(deltas, anchors.repeat(len(prediction), 1))
            boxes: Tensor = decoded.view(len(prediction), -1, 4)
            return boxes if differentiable else clip_xyxy(boxes, prediction.image_size)

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """{box, cls}: L1 (v1) or GIoU (v2) and focal loss, a mean over images of sums over max(1, positives), times the gains."""
        check_count(len(prediction), targets)
        output, anchors = self._head_output(prediction)
        wanted = head_targets(targets, self.labels, anchors)
        parts = self.model.compute_loss(wanted, output, [anchors] * len(wanted))
        return {"box": self.gains["box"] * parts["bbox_regression"], "cls": self.gains["cls"] * parts["classification"]}


class PlainP6P7(LastLevelP6P7):
    """p6 and p7 by convolutions of stride 2 alone, without torchvision's ReLU between them."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Pyramid maps p and backbone stages c, fine first, to the maps with two more."""
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


def _build(
    architecture: str,
    columns: int,
    backbone: str,
    channels: int,
    width: float,
    anchor_size: int,
    p6_from: P6From | None,
    conventions: Conventions,
) -> Any:
    """torchvision's RetinaNet from scratch, its parts those of torchvision's builder of that name."""
    second, exact = architecture == _V2, conventions == "mmdetection"
    source = p6_from or ("c5" if second else "p5")
    extra = (PlainP6P7 if exact else LastLevelP6P7)(
        stage_channels(backbone, width)[3] if source == "c5" else channels, channels
    )
    if p6_from is not None:
        extra.use_P5 = p6_from == "p5"  # torchvision goes by the channels, which may be equal
    body = resnet_fpn(backbone, width, channels, first_stage=2, extra=extra)
    sides = [[s * 2 ** (k / 3) for k in range(3)] for s in (anchor_size * 2**i for i in range(5))]
    generator = PaddedAnchors([[int(side) for side in level] for level in sides], (_RATIOS,) * 5, STRIDES)
    # The published heads have 32 groups; narrower ones that 32 does not divide take the largest count that does.
    norm = partial(nn.GroupNorm, math.gcd(32, channels)) if second else None
    head = retinanet.RetinaNetHead(channels, generator.num_anchors_per_location()[0], columns, norm_layer=norm)
    if second:
        head.regression_head._loss_type = "giou"
    model = retinanet.RetinaNet(body, columns, anchor_generator=generator, head=head)
    if exact:
        model.anchor_generator = ExactAnchors(sides, _RATIOS, STRIDES)
    return model
