"""Faster R-CNN with FPN (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017) of torchvision, with any ResNet of any width."""

from __future__ import annotations

from collections.abc import Sequence

from detkd.detectors.torchvision.architecture import Conventions, check_conventions, find_architecture
from detkd.detectors.torchvision.backbones import check_backbone, freeze_norms
from detkd.detectors.torchvision.base import check_published
from detkd.detectors.torchvision.detector import make_settings
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.rcnn_parts import ARCHITECTURES, FPN_STRIDES, build_faster_rcnn, follow
from detkd.detectors.torchvision.two_stage import TwoStageRCNN, pyramid_levels
from detkd.detectors.torchvision.weights import load_published
from detkd.structures import Resize


class FasterRCNN(TwoStageRCNN):
    """torchvision's Faster R-CNN as a :class:`~detkd.detectors.protocol.Detector`.

    Features are backbone stages c2 to c5 and pyramid maps p2 to p6; with MobileNet, whose last two stages share a stride, c5, c5b and
    p5, p5b, p6. RoIs are pooled from p2 to p5 to (R, channels, 7, 7); the embedding is (R, roi_width). ``norms()`` leaves the norms of the
    RoI head (v2) out. The rest is of :class:`~detkd.detectors.torchvision.two_stage.TwoStageRCNN`.

    Args:
        architecture: fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2 (BatchNorm in pyramid and RoI head, deeper heads),
            fasterrcnn_mobilenet_v3_large_fpn or fasterrcnn_mobilenet_v3_large_320_fpn.
        classes: class names; may be left out with ``coco91`` or ``weights``.
        image_size: (height, width) that images are brought to; None: (800, 800), or (320, 320).
        resize: how. mean, std: of normalisation; None: torchvision's.
        weights: member of torchvision's weights enum ("COCO_V1"); implies ``coco91`` and the norms those weights were trained with.
        coco91: the RoI head has torchvision's 91 COCO columns; labels are the 80 classes.
        score_threshold, nms_iou, max_detections: of decoding; None: torchvision's.
        rpn_obj_gain, rpn_box_gain, roi_cls_gain, roi_box_gain: factors on the parts of the loss.
        backbone: resnet18, 34, 50, 101 or 152; None: the architecture's own. channels: of pyramid and heads. width: factor on the
            backbone's channels. MobileNet comes in one size.
        anchor_size: side in pixels of the smallest anchors.
        roi_width: width of the RoI head's fully connected layers.
        rois: RoIs an image that the loss samples. train_proposals, proposals: proposals an image, in the loss and in decoding, at most;
            proposals None: 1000, or 150 for the 320 px architecture.
        frozen_norms, frozen_eps: FrozenBatchNorm2d of that eps in the backbone instead of trainable BatchNorm2d.
        sampling_seed: of the detector's own generator, from which anchors and RoIs are sampled.
        conventions: whose anchors and RoIAlign: torchvision's, or MMDetection's (anchors of exact sides, a stride apart; RoIAlign aligned to
            cell centres, with as many points a bin as it has cells). They go with weights that were trained so. Backbone: a ResNet.

    Raises InputError on unknown names, missing classes, and weights that cannot be had or do not fit the other arguments.
    """

    def __init__(
        self,
        architecture: str = "fasterrcnn_resnet50_fpn",
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
        rpn_obj_gain: float = 1.0,
        rpn_box_gain: float = 1.0,
        roi_cls_gain: float = 1.0,
        roi_box_gain: float = 1.0,
        backbone: str | None = None,
        channels: int = 256,
        width: float = 1.0,
        anchor_size: int = 32,
        roi_width: int = 1024,
        rois: int = 512,
        train_proposals: int = 2000,
        proposals: int | None = None,
        frozen_norms: bool = False,
        frozen_eps: float = 1e-5,
        sampling_seed: int = 0,
        conventions: Conventions = "torchvision",
    ) -> None:
        own = find_architecture(architecture, ARCHITECTURES)
        body = check_backbone(own.backbone, backbone, width, channels)
        check_conventions(conventions, body)
        if weights is not None:
            changed = {"channels": channels != 256, "width": width != 1.0, "anchor_size": anchor_size != 32}
            changed |= {"conventions": conventions != "torchvision", "roi_width": roi_width != 1024}
            check_published(own, backbone=body != own.backbone, **changed)
            coco91, frozen_norms, frozen_eps = True, own.frozen_norms, own.frozen_eps
        labels = make_head_labels(classes, coco91, background=True)
        heads = (roi_width, rois, train_proposals, proposals)
        model = build_faster_rcnn(architecture, labels.width, body, channels, width, anchor_size, *heads)
        follow(model, conventions, anchor_size)
        if frozen_norms:
            freeze_norms(model.backbone, frozen_eps)
        if weights is not None:
            load_published(model, architecture, weights)
        super().__init__(
            model,
            make_settings(own, labels, image_size, resize, mean, std, score_threshold, nms_iou, max_detections),
            gains={"rpn_obj": rpn_obj_gain, "rpn_box": rpn_box_gain, "roi_cls": roi_cls_gain, "roi_box": roi_box_gain},
            built={
                "architecture": architecture,
                "weights": None,
                "coco91": coco91,
                "backbone": body,
                "channels": channels,
                "width": width,
                "anchor_size": anchor_size,
                "roi_width": roi_width,
                "frozen_norms": frozen_norms,
                "frozen_eps": frozen_eps,
                "conventions": conventions,
            },
            levels=pyramid_levels(own.strides if body == own.backbone else FPN_STRIDES),
            sampling_seed=sampling_seed,
        )
