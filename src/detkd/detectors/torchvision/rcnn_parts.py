"""torchvision's Faster R-CNN put together from parts, so that every width can be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import roi_align

from detkd.detectors.torchvision.architecture import Architecture, table_of
from detkd.detectors.torchvision.backbones import MOBILENET, mobilenet_fpn, resnet_fpn

_STRIDES = (4, 8, 16, 32, 64)
_V2 = "fasterrcnn_resnet50_fpn_v2"
_MOBILENET_320 = "fasterrcnn_mobilenet_v3_large_320_fpn"
# MobileNet's last two stages have the same stride, and the max-pool on top doubles it.
_MOBILENET_STRIDES = (32, 32, 64)
ARCHITECTURES = table_of(
    Architecture("fasterrcnn_resnet50_fpn", "resnet50", _STRIDES, frozen_norms=True, frozen_eps=0.0),
    Architecture(_V2, "resnet50", _STRIDES),
    Architecture("fasterrcnn_mobilenet_v3_large_fpn", MOBILENET, _MOBILENET_STRIDES, frozen_norms=True),
    Architecture(_MOBILENET_320, MOBILENET, _MOBILENET_STRIDES, image_size=(320, 320), frozen_norms=True),
)


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
    if mobile:
        body = mobilenet_fpn()
        generator = AnchorGenerator((tuple(sides),) * 3, ((0.5, 1.0, 2.0),) * 3)
    else:
        body = resnet_fpn(backbone, width, channels, first_stage=1, extra=None, fpn_norm=nn.BatchNorm2d if second else None)
        generator = AnchorGenerator(tuple((s,) for s in sides), ((0.5, 1.0, 2.0),) * 5)
    per_site = generator.num_anchors_per_location()[0]
    head: nn.Module = faster_rcnn.TwoMLPHead(channels * 7 * 7, roi_width)
    if second:
        head = faster_rcnn.FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [roi_width], norm_layer=nn.BatchNorm2d)
    kept = proposals if proposals is not None else 150 if architecture == _MOBILENET_320 else 1000
    return faster_rcnn.FasterRCNN(
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


def pool_levels(pooler: Any, maps: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """RoIAlign of every box on every level: boxes (r, 4) an image, xyxy in pixels, R in all, to (R, levels, C, h, w).

    pooler: torchvision's, for its output size and sampling.
    """
    size, ratio = pooler.output_size, pooler.sampling_ratio
    of_level = [roi_align(m, list(boxes), size, 1 / s, ratio) for m, s in zip(maps, strides)]  # (R, C, h, w) each
    return torch.stack(of_level, dim=1)  # (R, levels, C, h, w)
