"""FCOS (Tian et al., ICCV 2019, and arXiv 2006.09214) of torchvision, with any ResNet of any width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkd.boxes import clip_xyxy
from detkd.detectors.norms import Norm, find_norms
from detkd.detectors.torchvision.anchors import PaddedAnchors
from detkd.detectors.torchvision.architecture import Architecture, find_architecture, make_spec, table_of
from detkd.detectors.torchvision.backbones import check_backbone, freeze_norms, pyramid, resnet_fpn
from detkd.detectors.torchvision.base import (
    Normalise,
    anchors_of,
    check_count,
    check_published,
    flatten_levels,
    head_targets,
    in_float,
    level_names,
    level_sizes,
    pick_maps,
    size_of,
)
from detkd.detectors.torchvision.dense import behind, finish_towers, kept, layers_of, run_towers, towers_of
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.weights import load_published
from detkd.structures import Detection, Prediction, Resize, Target

_STRIDES = (8, 16, 32, 64, 128)
_MAPS = level_names("p", _STRIDES)
_ONE = (1,) * len(_STRIDES)  # sites a cell
ARCHITECTURES = table_of(
    Architecture("fcos_resnet50_fpn", "resnet50", _STRIDES, score_threshold=0.2, nms_iou=0.6, frozen_norms=True)
)


class FCOS(nn.Module):
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
        super().__init__()
        own = self.architecture = find_architecture(architecture, ARCHITECTURES)
        self.backbone = check_backbone(own.backbone, backbone, width, channels)
        if weights is not None:
            changed = {"channels": channels != 256, "width": width != 1.0}
            check_published(own, backbone=self.backbone != own.backbone, **changed)
            coco91, frozen_norms, frozen_eps = True, own.frozen_norms, own.frozen_eps
        self.coco91 = coco91
        self.channels, self.width = channels, width
        self.frozen_norms, self.frozen_eps = frozen_norms, frozen_eps
        self.labels = make_head_labels(classes, coco91, background=False)
        self.spec = make_spec(own, self.labels.classes, image_size, resize, mean, std)
        self.gains = {"box": box_gain, "cls": cls_gain, "ctr": ctr_gain}
        self.normalise = Normalise(self.spec)
        self.model: Any = _build(self.labels.width, self.backbone, channels, width)
        self.model.score_thresh = own.score_threshold if score_threshold is None else score_threshold
        self.model.nms_thresh = own.nms_iou if nms_iou is None else nms_iou
        self.model.detections_per_img = own.max_detections if max_detections is None else max_detections
        if frozen_norms:
            freeze_norms(self.model.backbone, frozen_eps)
        if weights is not None:
            load_published(self.model, architecture, weights)

    def forward(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) RGB images in [0, 1] to a Prediction."""
        stages, maps = pyramid(self.model.backbone, self.normalise(images))
        features = dict(zip(level_names("c", _STRIDES), stages.values())) | dict(zip(_MAPS, maps.values()))
        return self.head(features, size_of(images))

    def head(self, features: Mapping[str, Tensor], image_size: tuple[int, int]) -> Prediction:
        """Both towers and their predictions on the maps p3 to p7 (B, channels, H, W); other features are passed on.

        Raises ValueError naming the maps that are missing.
        """
        towers = run_towers(self.model.head, pick_maps(features, _MAPS), _MAPS)
        prediction = self._predict(*behind(towers), image_size)
        return replace(prediction, features=dict(features), state=kept(towers) | prediction.state)

    def head_from(self, cls: Sequence[Tensor], box: Sequence[Tensor], layer: int, image_size: tuple[int, int]) -> Prediction:
        """The rest of the head on what :meth:`towers` gives behind ``layer``; the prediction has no features."""
        return self._predict(*finish_towers(self.model.head, cls, box, layer), image_size)

    @property
    def tower_layers(self) -> int:
        """How many layers each tower has before what predicts: 4."""
        return len(layers_of(self.model.head.classification_head.conv))

    def towers(self, prediction: Prediction, layer: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Classification and box maps (B, channels, H, W) a level: the towers after the ReLU of a layer, by default the last."""
        return towers_of(self.model.head, prediction, _MAPS, layer)

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

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        """Detections as torchvision's own, one an image; of a 91-column head those of the 80 classes."""
        output, anchors = self._head_output(prediction)
        count, lengths = len(prediction), [h * w for h, w, _ in prediction.sizes]
        levels = {name: list(torch.split(values, lengths, dim=1)) for name, values in output.items()}
        anchor_levels = [list(torch.split(anchors, lengths))] * count
        found = self.model.postprocess_detections(levels, anchor_levels, [prediction.image_size] * count)
        return [self.labels.to_detection(f) for f in found]

    def norms(self) -> list[Norm]:
        """BatchNorm and FrozenBatchNorm layers of the backbone, in order of definition."""
        return find_norms(self)

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that build this architecture again, without weights."""
        return {
            "architecture": self.architecture.name,
            "classes": list(self.spec.classes),
            "image_size": list(self.spec.image_size),
            "resize": self.spec.resize,
            "mean": list(self.spec.mean),
            "std": list(self.spec.std),
            "weights": None,
            "coco91": self.coco91,
            "score_threshold": self.model.score_thresh,
            "nms_iou": self.model.nms_thresh,
            "max_detections": self.model.detections_per_img,
            "box_gain": self.gains["box"],
            "cls_gain": self.gains["cls"],
            "ctr_gain": self.gains["ctr"],
            "backbone": self.backbone,
            "channels": self.channels,
            "width": self.width,
            "frozen_norms": self.frozen_norms,
            "frozen_eps": self.frozen_eps,
        }

    def _predict(self, cls: Sequence[Tensor], box: Sequence[Tensor], image_size: tuple[int, int]) -> Prediction:
        """What the last layers of the towers predict."""
        head = self.model.head
        logits = flatten_levels([head.classification_head.cls_logits(m) for m in cls], _ONE, self.labels.width)  # (B, N, width)
        return Prediction(
            raw={
                "cls": self.labels.select(logits),
                "box": flatten_levels([head.regression_head.bbox_reg(m).relu() for m in box], _ONE, 4),
                "ctr": flatten_levels([head.regression_head.bbox_ctrness(m) for m in box], _ONE, 1),
            },
            sizes=level_sizes(cls, _ONE),
            strides=_STRIDES,
            features={},
            image_size=image_size,
            state={} if self.labels.complete else {"logits": logits},
        )

    def _head_output(self, prediction: Prediction) -> tuple[dict[str, Tensor], Tensor]:
        """The head's output as torchvision names it, all columns, and the anchors (N, 4) of one image."""
        raw = prediction.raw
        logits = prediction.state.get("logits", raw["cls"])
        output = {"cls_logits": in_float(logits), "bbox_regression": in_float(raw["box"]), "bbox_ctrness": in_float(raw["ctr"])}
        anchors = anchors_of(self.model.anchor_generator, prediction.sizes, prediction.image_size, logits.device)
        return output, anchors


def _build(columns: int, backbone: str, channels: int, width: float) -> Any:
    """torchvision's FCOS from scratch, its parts those of torchvision's builder."""
    body = resnet_fpn(backbone, width, channels, first_stage=2, extra=LastLevelP6P7(channels, channels))
    # FCOSHead cannot be told its norms, and its 32 groups do not divide every width: its two towers are put in afterwards.
    norm = partial(nn.GroupNorm, math.gcd(32, channels))
    head = fcos.FCOSHead(channels, 1, columns, num_convs=0)
    head.classification_head = fcos.FCOSClassificationHead(channels, 1, columns, norm_layer=norm)
    head.regression_head = fcos.FCOSRegressionHead(channels, 1, norm_layer=norm)
    # points of torchvision's FCOS: one square of the stride's side a cell
    points = PaddedAnchors([(stride,) for stride in _STRIDES], ((1.0,),) * len(_STRIDES), _STRIDES)
    return fcos.FCOS(body, columns, head=head, anchor_generator=points)
