"""Faster R-CNN on c4 (Ren et al., NeurIPS 2015, as He et al., CVPR 2016, run it on a ResNet) over torchvision's parts."""

from __future__ import annotations

from collections.abc import Sequence

from detkd.detectors.torchvision.backbones import check_resnet, freeze_norms
from detkd.detectors.torchvision.base import level_names
from detkd.detectors.torchvision.detector import make_settings
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.rcnn_parts import C4, build_c4
from detkd.detectors.torchvision.two_stage import Levels, TwoStageRCNN
from detkd.structures import Resize


class FasterRCNNC4(TwoStageRCNN):
    """Faster R-CNN without a pyramid: the RPN and the RoIs read c4, and the ResNet's last stage is the RoI head.

    Features are the backbone stages c2, c3 and c4; c4, of stride 16, is the one map that the heads read, so that terms on neck maps
    compare it. RoIs are pooled to (R, C, 14, 14); the embedding is the mean over what layer4 makes of them, (R, D), with the C channels
    of c4 and the D of c5. ``norms()`` leaves those of layer4 out, since they see RoIs and not images. At a site there are 15 anchors.
    The rest is of :class:`~detkd.detectors.torchvision.two_stage.TwoStageRCNN`. There are no published weights.

    Args:
        classes: class names.
        image_size: (height, width) that images are brought to; None: (800, 800).
        resize: how. mean, std: of normalisation; None: torchvision's.
        score_threshold, nms_iou, max_detections: of decoding; None: 0.05, 0.5, 100.
        rpn_obj_gain, rpn_box_gain, roi_cls_gain, roi_box_gain: factors on the parts of the loss.
        backbone: resnet18, 34, 50, 101 or 152. width: factor on its channels.
        anchor_size: side in pixels of the smallest anchors, doubled four times.
        rois: RoIs an image that the loss samples. train_proposals, proposals: proposals an image, in the loss and in decoding, at most.
        frozen_norms, frozen_eps: FrozenBatchNorm2d of that eps in the whole ResNet, layer4 too, instead of trainable BatchNorm2d.
        sampling_seed: of the detector's own generator, from which anchors and RoIs are sampled.

    Raises InputError on unknown names, missing classes and sizes out of range.
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
        backbone: str = "resnet50",
        width: float = 1.0,
        anchor_size: int = 32,
        rois: int = 512,
        train_proposals: int = 2000,
        proposals: int = 1000,
        frozen_norms: bool = False,
        frozen_eps: float = 1e-5,
        sampling_seed: int = 0,
    ) -> None:
        check_resnet(backbone, width)
        labels = make_head_labels(classes, coco91=False, background=True)
        model = build_c4(labels.width, backbone, width, anchor_size, rois, train_proposals, proposals)
        if frozen_norms:
            freeze_norms(model, frozen_eps)
        maps = level_names("c", C4.strides)
        super().__init__(
            model,
            make_settings(C4, labels, image_size, resize, mean, std, score_threshold, nms_iou, max_detections),
            gains={"rpn_obj": rpn_obj_gain, "rpn_box": rpn_box_gain, "roi_cls": roi_cls_gain, "roi_box": roi_box_gain},
            built={
                "backbone": backbone,
                "width": width,
                "anchor_size": anchor_size,
                "frozen_norms": frozen_norms,
                "frozen_eps": frozen_eps,
            },
            levels=Levels(C4.strides, ("c2", "c3", "c4"), maps, maps),
            sampling_seed=sampling_seed,
        )
