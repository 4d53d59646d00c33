"""Cascade R-CNN (Cai & Vasconcelos, CVPR 2018) with FPN over torchvision's parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkd.detectors.torchvision.architecture import Conventions, check_conventions
from detkd.detectors.torchvision.backbones import check_resnet, freeze_norms
from detkd.detectors.torchvision.detector import make_settings
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.rcnn_parts import CASCADE, FPN_STRIDES, build_cascade, follow, mean_probabilities
from detkd.detectors.torchvision.two_stage import TwoStageRCNN, pyramid_levels
from detkd.errors import InputError
from detkd.structures import Resize

# factors on dx, dy, dw, dh of each stage; MMDetection writes their inverses with two digits, of which 0.033 and 0.067 are no 1/30 and 1/15
_CODERS: dict[Conventions, tuple[tuple[float, float, float, float], ...]] = {
    "torchvision": ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)),
    "mmdetection": ((10, 10, 5, 5), (20, 20, 10, 10), (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067)),
}
_STAGES = len(_CODERS["torchvision"])


class CascadeRCNN(TwoStageRCNN):
    """Cascade R-CNN as a :class:`~detkd.detectors.protocol.Detector`: three RoI heads, each at the boxes that the one before has moved.

    Features are backbone stages c2 to c5 and pyramid maps p2 to p6. RoIs are pooled from p2 to p5 to (R, channels, 7, 7); the embedding
    is (R, roi_width). The RPN, the sampling and the moving of boxes are of :class:`~detkd.detectors.torchvision.two_stage.TwoStageRCNN`.
    There are no published weights of torchvision.

    - Box corrections do not depend on the class; ``RoI.deltas`` has the same four for each.
    - A detection is a box of the last stage, and its scores the mean of what the heads of all stages say of the boxes that the last one
      looks at, as in the paper's ensemble of classifiers.
    - In training a later stage samples from the RoIs of the one before, moved by it and clipped. Ground truth is added to the boxes of
      every stage, and where a stage has sampled it, it does not go on to the next; the paper does not say.

    Args:
        classes: class names.
        image_size: (height, width) that images are brought to; None: (800, 800).
        resize: how. mean, std: of normalisation; None: torchvision's.
        score_threshold, nms_iou, max_detections: of decoding; None: 0.05, 0.5, 100.
        rpn_obj_gain, rpn_box_gain, roi_cls_gain, roi_box_gain: factors on the parts of the loss.
        stage_gains: factors on the RoI parts, a stage each; the paper's sum has 1 for all, its authors' code these.
        ious: a stage's least overlap of a RoI with an object.
        backbone: resnet18, 34, 50, 101 or 152. channels: of pyramid and heads. width: factor on the backbone's channels.
        anchor_size: side in pixels of the smallest anchors. roi_width: width of the RoI heads' fully connected layers.
        rois: RoIs an image that each stage samples. train_proposals, proposals: proposals an image, in the loss and in decoding, at most.
        frozen_norms, frozen_eps: FrozenBatchNorm2d of that eps in the backbone instead of trainable BatchNorm2d.
        sampling_seed: of the detector's own generator, from which anchors and RoIs are sampled.
        conventions: torchvision's, or MMDetection's, which go with weights that were trained so: anchors and RoIAlign as of
            :class:`~detkd.detectors.torchvision.faster_rcnn.FasterRCNN`, its factors of the third stage's corrections, and in place of
            the mean above, the softmax of the mean logits, each stage's of its own boxes.

    Raises InputError on unknown names, missing classes and values out of range.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        image_size: Sequence[int] | None = None,
        resize: Resize = "stretch",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        rpn_obj_gain: float = 1.0,
        rpn_box_gain: float = 1.0,
        roi_cls_gain: float = 1.0,
        roi_box_gain: float = 1.0,
        stage_gains: Sequence[float] = (1.0, 0.5, 0.25),
        ious: Sequence[float] = (0.5, 0.6, 0.7),
        backbone: str = "resnet50",
        channels: int = 256,
        width: float = 1.0,
        anchor_size: int = 32,
        roi_width: int = 1024,
        rois: int = 512,
        train_proposals: int = 2000,
        proposals: int = 1000,
        frozen_norms: bool = False,
        frozen_eps: float = 1e-5,
        sampling_seed: int = 0,
        conventions: Conventions = "torchvision",
    ) -> None:
        check_resnet(backbone, width, channels)
        check_conventions(conventions, backbone)
        if len(stage_gains) != _STAGES or min(stage_gains) < 0:
            raise InputError(f"stage_gains: expected {_STAGES} factors of at least 0, got {list(stage_gains)}")
        if len(ious) != _STAGES or not all(0 < iou <= 1 for iou in ious):
            raise InputError(f"ious: expected {_STAGES} numbers in (0, 1], got {list(ious)}")
        labels = make_head_labels(classes, coco91=False, background=True)
        heads = (roi_width, rois, train_proposals, proposals, ious, _CODERS[conventions])
        model = build_cascade(labels.width, backbone, channels, width, anchor_size, *heads)
        follow(model, conventions, anchor_size)
        if frozen_norms:
            freeze_norms(model.backbone, frozen_eps)
        super().__init__(
            model,
            make_settings(CASCADE, labels, image_size, resize, mean, std, score_threshold, nms_iou, max_detections),
            gains={"rpn_obj": rpn_obj_gain, "rpn_box": rpn_box_gain, "roi_cls": roi_cls_gain, "roi_box": roi_box_gain},
            built={
                "stage_gains": list(stage_gains),
                "ious": list(ious),
                "backbone": backbone,
                "channels": channels,
                "width": width,
                "anchor_size": anchor_size,
                "roi_width": roi_width,
                "frozen_norms": frozen_norms,
                "frozen_eps": frozen_eps,
                "conventions": conventions,
            },
            levels=pyramid_levels(FPN_STRIDES),
            sampling_seed=sampling_seed,
            stage_gains=stage_gains,
        )
        self.conventions = conventions

    def _joined(self, seen: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Logits (R, columns) of all stages together; see the class."""
        if self.conventions == "mmdetection":
            return torch.stack(list(seen)).mean(0)
        before = [self._predict(pooled, stage)[1] for stage in range(self.stages - 1)]
        return mean_probabilities([*before, seen[-1]])
