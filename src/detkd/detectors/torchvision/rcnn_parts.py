"""torchvision's Faster R-CNN put together from parts, so that every width can be chosen, and the parts that torchvision lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead

from detkd.detectors.torchvision.anchors import ExactAnchors, PaddedAnchors
from detkd.detectors.torchvision.architecture import Architecture, Conventions, table_of
from detkd.detectors.torchvision.backbones import MOBILENET, mobilenet_fpn, resnet_c4, resnet_fpn, stage_channels
from detkd.detectors.torchvision.pooling import PyramidPooler

FPN_STRIDES = (4, 8, 16, 32, 64)
_V2 = "fasterrcnn_resnet50_fpn_v2"
_MOBILENET_320 = "fasterrcnn_mobilenet_v3_large_320_fpn"
# MobileNet's last two stages have the same stride, and the max-pool on top doubles it.
_MOBILENET_STRIDES = (32, 32, 64)
ARCHITECTURES = table_of(
    Architecture("fasterrcnn_resnet50_fpn", "resnet50", FPN_STRIDES, frozen_norms=True, frozen_eps=0.0),
    Architecture(_V2, "resnet50", FPN_STRIDES),
    Architecture("fasterrcnn_mobilenet_v3_large_fpn", MOBILENET, _MOBILENET_STRIDES, frozen_norms=True),
    Architecture(_MOBILENET_320, MOBILENET, _MOBILENET_STRIDES, image_size=(320, 320), frozen_norms=True),
)
C4 = Architecture("fasterrcnn_c4", "resnet50", (16,))
CASCADE = Architecture("cascade_rcnn_fpn", "resnet50", FPN_STRIDES)
_RATIOS = (0.5, 1.0, 2.0)
_C4_POOLED = 14  # layer4 halves it


def build_faster_rcnn(
    architecture: str,
    columns: int,
    backbone: str,
    channels: int,
    width: float,
    anchor_size: int,
    roi_width: int,
    rois: int,
    train_proposals: int,
    proposals: int | None,
) -> Any:
    """torchvision's Faster R-CNN from scratch, its parts and defaults those of torchvision's builder of that name.

    Args: as of :class:`~detkd.detectors.torchvision.faster_rcnn.FasterRCNN`; columns counts background.
    """
    second, mobile = architecture == _V2, backbone == MOBILENET
    sides = [anchor_size * 2**i for i in range(5)]
    strides: tuple[int, ...] = _MOBILENET_STRIDES if mobile else FPN_STRIDES
    if mobile:
        body = mobilenet_fpn()
        generator = PaddedAnchors((sides,) * 3, (_RATIOS,) * 3, strides)
    else:
        body = resnet_fpn(backbone, width, channels, first_stage=1, extra=None, fpn_norm=nn.BatchNorm2d if second else None)
        generator = PaddedAnchors([(s,) for s in sides], (_RATIOS,) * 5, strides)
    per_site = generator.num_anchors_per_location()[0]
    head: nn.Module = faster_rcnn.TwoMLPHead(channels * 7 * 7, roi_width)
    if second:
        head = faster_rcnn.FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [roi_width], norm_layer=nn.BatchNorm2d)
    kept = proposals if proposals is not None else 150 if architecture == _MOBILENET_320 else 1000
    model = faster_rcnn.FasterRCNN(
        body,
        rpn_anchor_generator=generator,
        rpn_head=RPNHead(channels, per_site, conv_depth=2 if second else 1),
        rpn_pre_nms_top_n_train=train_proposals,
        rpn_post_nms_top_n_train=train_proposals,
        rpn_pre_nms_top_n_test=kept,
        rpn_post_nms_top_n_test=kept,
        rpn_score_thresh=0.05 if "mobilenet" in architecture else 0.0,
        box_head=head,
        box_predictor=faster_rcnn.FastRCNNPredictor(roi_width, columns),
        box_batch_size_per_image=rois,
    )
    model.roi_heads.box_roi_pool = PyramidPooler((7, 7), strides[:-1])
    return model


def build_c4(
    columns: int,
    backbone: str,
    width: float,
    anchor_size: int,
    rois: int,
    train_proposals: int,
    proposals: int,
) -> Any:
    """torchvision's Faster R-CNN on c4, its RoI head the ResNet's last stage; six times as many boxes go into NMS as come out at most.

    Args: as of :class:`~detkd.detectors.torchvision.faster_rcnn_c4.FasterRCNNC4`; columns counts background.
    """
    trunk, last = resnet_c4(backbone, width)
    generator = PaddedAnchors([[anchor_size * 2**i for i in range(5)]], [_RATIOS], C4.strides)
    c4, c5 = stage_channels(backbone, width)[2:]
    model = faster_rcnn.FasterRCNN(
        trunk,
        rpn_anchor_generator=generator,
        rpn_head=RPNHead(c4, generator.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=6 * train_proposals,
        rpn_post_nms_top_n_train=train_proposals,
        rpn_pre_nms_top_n_test=6 * proposals,
        rpn_post_nms_top_n_test=proposals,
        box_head=StageHead(last),
        box_predictor=faster_rcnn.FastRCNNPredictor(c5, columns),
        box_batch_size_per_image=rois,
    )
    model.roi_heads.box_roi_pool = PyramidPooler((_C4_POOLED, _C4_POOLED), C4.strides)
    return model


def build_cascade(
    columns: int,
    backbone: str,
    channels: int,
    width: float,
    anchor_size: int,
    roi_width: int,
    rois: int,
    train_proposals: int,
    proposals: int,
    ious: Sequence[float],
    coder_weights: Sequence[tuple[float, float, float, float]],
) -> Any:
    """torchvision's Faster R-CNN with a pyramid and a RoI head a stage, in a ModuleList.

    Args: as of :class:`~detkd.detectors.torchvision.cascade_rcnn.CascadeRCNN`; columns counts background. coder_weights: factors on a
        stage's box corrections dx, dy, dw, dh.
    """
    parts = (channels, width, anchor_size, roi_width, rois, train_proposals, proposals)
    model = build_faster_rcnn("fasterrcnn_resnet50_fpn", columns, backbone, *parts)
    pooler = model.roi_heads.box_roi_pool  # without weights, shared
    model.roi_heads = nn.ModuleList(
        RoIHeads(
            pooler,
            faster_rcnn.TwoMLPHead(channels * 7 * 7, roi_width),
            AgnosticPredictor(roi_width, columns),
            fg_iou_thresh=iou,
            bg_iou_thresh=iou,
            batch_size_per_image=rois,
            positive_fraction=0.25,
            bbox_reg_weights=weights,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        for iou, weights in zip(ious, coder_weights, strict=True)
    )
    return model


def follow(model: Any, conventions: Conventions, anchor_size: int) -> None:
    """Give a Faster R-CNN or cascade with a pyramid of five levels the anchors and the RoIAlign of ``conventions``, in place."""
    if conventions == "torchvision":
        return
    sides = [(float(anchor_size * 2**i),) for i in range(5)]
    model.rpn.anchor_generator = ExactAnchors(sides, _RATIOS, FPN_STRIDES)
    heads = model.roi_heads if isinstance(model.roi_heads, nn.ModuleList) else [model.roi_heads]
    for head in heads:
        head.box_roi_pool = PyramidPooler((7, 7), FPN_STRIDES[:-1], sampling_ratio=0, aligned=True)


class StageHead(nn.Module):
    """A stage of a ResNet, then the mean over the map: (R, C, h, w) to (R, D)."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, h, w) pooled features to the embedding (R, D)."""
        features: Tensor = self.layer4(pooled)
        return features.mean(dim=(2, 3))  # (R, D, h, w) -> (R, D)


class AgnosticPredictor(nn.Module):
    """Class logits and one box correction for all classes, the parts named as in torchvision's FastRCNNPredictor.

    Corrections start near zero (Fast R-CNN: N(0, 0.001)), so that the later stages of an untrained cascade look at the proposals.
    """

    def __init__(self, embedding: int, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.cls_score = nn.Linear(embedding, columns)
        self.bbox_pred = nn.Linear(embedding, 4)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) to logits (R, columns) and deltas (R, columns * 4), the same four for every column, as torchvision's readers want them."""
        deltas: Tensor = self.bbox_pred(embedding)
        return self.cls_score(embedding), deltas.repeat(1, self.columns)


def mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Logits (R, columns) whose softmax is the mean of the softmaxes of those given."""
    return torch.stack([of_one.softmax(1) for of_one in logits]).mean(0).clamp(min=torch.finfo(logits[0].dtype).tiny).log()
