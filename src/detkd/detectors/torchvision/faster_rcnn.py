"""Faster R-CNN with FPN (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017) of torchvision, with any ResNet of any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

from detkd.detectors.modes import evaluating, flagged, not_learning
from detkd.detectors.norms import Norm, find_norms
from detkd.detectors.torchvision.architecture import find_architecture, make_spec
from detkd.detectors.torchvision.backbones import check_backbone, freeze_norms, pyramid
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
    size_of,
)
from detkd.detectors.torchvision.labels import make_head_labels
from detkd.detectors.torchvision.rcnn_parts import ARCHITECTURES, build_faster_rcnn, pool_levels
from detkd.detectors.torchvision.sampling import SeededSampler
from detkd.detectors.torchvision.weights import load_published
from detkd.structures import Detection, Prediction, Resize, RoI, Target


class FasterRCNN(nn.Module):
    """torchvision's Faster R-CNN as a :class:`~detkd.detectors.protocol.Detector`.

    ``raw`` is the RPN's, {obj: (B, N, 1), box: (B, N, 4)}. Features are backbone stages c2 to c5 and pyramid maps p2 to p6; with
    MobileNet, whose last two stages share a stride, c5, c5b and p5, p5b, p6. ``norms()`` leaves the norms of the RoI head (v2) out.
    The RoI head runs in ``loss`` and ``decode``, on proposals made from ``raw`` without gradient.

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

    Raises InputError on unknown names, missing classes, and weights that cannot be had or do not fit the other arguments.
    """

    stages = 1

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
    ) -> None:
        super().__init__()
        own = self.architecture = find_architecture(architecture, ARCHITECTURES)
        self.backbone = check_backbone(own.backbone, backbone, width, channels)
        if weights is not None:
            changed = {"channels": channels != 256, "width": width != 1.0, "anchor_size": anchor_size != 32}
            check_published(own, backbone=self.backbone != own.backbone, roi_width=roi_width != 1024, **changed)
            coco91, frozen_norms, frozen_eps = True, own.frozen_norms, own.frozen_eps
        self.coco91 = coco91
        self.channels, self.width, self.anchor_size = channels, width, anchor_size
        self.frozen_norms, self.frozen_eps = frozen_norms, frozen_eps
        self.roi_width, self.sampling_seed = roi_width, sampling_seed
        self.labels = make_head_labels(classes, coco91, background=True)
        self.spec = make_spec(own, self.labels.classes, image_size, resize, mean, std)
        self.gains = {"rpn_obj": rpn_obj_gain, "rpn_box": rpn_box_gain, "roi_cls": roi_cls_gain, "roi_box": roi_box_gain}
        self.normalise = Normalise(self.spec)
        self.model: Any = build_faster_rcnn(
            architecture,
            self.labels.width,
            self.backbone,
            channels,
            width,
            anchor_size,
            roi_width,
            rois,
            train_proposals,
            proposals,
        )
        roi_heads, rpn = self.model.roi_heads, self.model.rpn
        roi_heads.score_thresh = own.score_threshold if score_threshold is None else score_threshold
        roi_heads.nms_thresh = own.nms_iou if nms_iou is None else nms_iou
        roi_heads.detections_per_img = own.max_detections if max_detections is None else max_detections
        self.generator = torch.Generator()
        for module in (rpn, roi_heads):
            given = module.fg_bg_sampler
            module.fg_bg_sampler = SeededSampler(given.batch_size_per_image, given.positive_fraction, self.generator)
        self.reseed(sampling_seed)
        if frozen_norms:
            freeze_norms(self.model.backbone, frozen_eps)
        if weights is not None:
            load_published(self.model, architecture, weights)
        self._strides = own.strides if self.backbone == own.backbone else (4, 8, 16, 32, 64)

    def reseed(self, seed: int) -> None:
        """Start the sampling of anchors and RoIs again from ``seed``: what follows depends on it and the inputs alone."""
        self.generator.manual_seed(seed)

    def forward(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) RGB images in [0, 1] to a Prediction. The RoI head does not run."""
        stages, maps = pyramid(self.model.backbone, self.normalise(images))
        rpn = self.model.rpn
        anchors = rpn.anchor_generator.num_anchors_per_location()
        objectness, deltas = rpn.head(list(maps.values()))
        features = dict(zip(self._stage_names(), stages.values())) | dict(zip(self._map_names(), maps.values()))
        return Prediction(
            raw={"obj": flatten_levels(objectness, anchors, 1), "box": flatten_levels(deltas, anchors, 4)},
            sizes=level_sizes(maps.values(), anchors),
            strides=self._strides,
            features=features,
            image_size=size_of(images),
        )

    def loss(
        self, prediction: Prediction, targets: Sequence[Target], proposals: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """{rpn_obj, rpn_box, roi_cls, roi_box}: BCE, smooth L1, cross-entropy, smooth L1 over sampled anchors and RoIs, times the gains.

        Anchors and RoIs are drawn from the detector's own generator (:meth:`reseed`); the global random state is not touched.
        In eval mode the norms of the RoI head stay as they are, in train mode they are trained.
        proposals: boxes (r, 4) an image, xyxy in pixels, in place of the RPN's own for the RoI parts.
        A batch without any proposal and box gets the whole image as background RoI, where torchvision's loss is nan.
        """
        check_count(len(prediction), targets)
        rpn, count = self.model.rpn, len(prediction)
        obj, box, anchors = self._rpn_output(prediction)
        wanted = head_targets(targets, self.labels, anchors)
        all_anchors = [anchors] * count
        with flagged(rpn, training=True):
            labels, matched = rpn.assign_targets_to_anchors(all_anchors, wanted)
            wanted_deltas = rpn.box_coder.encode(matched, all_anchors)
            flat_obj, flat_box = obj.flatten(0, 1), box.flatten(0, 1)  # (B*N, 1), (B*N, 4)
            rpn_obj, rpn_box = rpn.compute_loss(flat_obj, flat_box, labels, wanted_deltas)
            proposed = self._proposals(prediction) if proposals is None else [p.detach().to(anchors) for p in proposals]
        if not any(len(p) for p in proposed) and not any(len(t["boxes"]) for t in wanted):
            height, width = prediction.image_size
            proposed = [anchors.new_tensor([[0, 0, width, height]])] * count
        sampled, _, roi_labels, roi_deltas = self.model.roi_heads.select_training_samples(proposed, wanted)
        roi_cls, roi_box = fastrcnn_loss(*self._predict(self.pool(prediction, sampled))[1:], roi_labels, roi_deltas)
        parts = {"rpn_obj": rpn_obj, "rpn_box": rpn_box, "roi_cls": roi_cls, "roi_box": roi_box}
        return {name: self.gains[name] * part for name, part in parts.items()}

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        """Detections as torchvision's own, one an image; of a 91-column head those of the 80 classes.

        The RoI head runs in eval mode, also while the detector is in training, so that its norms learn nothing from it.
        """
        proposals = self.propose(prediction)
        with evaluating(self.model.roi_heads):
            _, logits, deltas = self._predict(self.pool(prediction, proposals))
        sizes = [prediction.image_size] * len(prediction)
        found = zip(*self.model.roi_heads.postprocess_detections(logits, deltas, proposals, sizes))
        return [self.labels.to_detection({"boxes": b, "scores": s, "labels": c}) for b, s, c in found]

    @torch.no_grad()
    def propose(self, prediction: Prediction) -> list[Tensor]:
        """The (R, 4) xyxy proposals an image that decoding looks at: at most ``proposals``, best first."""
        with evaluating(self.model.rpn):
            return self._proposals(prediction)

    def pool(self, prediction: Prediction, boxes: Sequence[Tensor], level: Literal["all"] | None = None) -> Tensor:
        """RoIAlign of boxes (r, 4) an image, xyxy in pixels, R in all, from the maps that feed the RoI head (p2 to p5).

        level: None for (R, channels, 7, 7) from the level that a box's size assigns it to (FPN paper, equation 1);
            "all" for (R, levels, channels, 7, 7), the same box on each.
        """
        names = self._map_names()[:-1]  # the coarsest is the RPN's alone
        maps = [in_float(prediction.features[name]) for name in names]
        given, pooler = [b.to(maps[0]) for b in boxes], self.model.roi_heads.box_roi_pool
        if level == "all":
            return pool_levels(pooler, maps, given, self._strides)
        named = {str(i): m for i, m in enumerate(maps)}  # torchvision's names
        pooled: Tensor = pooler(named, given, [prediction.image_size] * len(prediction))
        return pooled

    def roi_head(self, pooled: Tensor, stage: int = 0) -> RoI:
        """What the RoI head says of pooled features (R, channels, 7, 7); of a 91-column head the 80 classes. There is one stage.

        Its norms (v2) follow the detector's mode but learn nothing here.
        """
        with not_learning(self.model.roi_heads):
            embedding, logits, deltas = self._predict(pooled)
        return RoI(embedding, self.labels.select(logits), self.labels.select_deltas(deltas))

    @torch.no_grad()
    def refine(self, prediction: Prediction, boxes: Sequence[Tensor], roi: RoI, stage: int = 0) -> list[Tensor]:
        """The boxes (r, 4) an image, each moved by the correction of the class that the RoI head sees in it, clipped to the image.

        A box that is taken for background moves by its most likely class.
        """
        best = roi.logits[:, 1:].argmax(1)  # (R,)
        deltas = in_float(roi.deltas).gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]  # (R, C, 4) -> (R, 4)
        coder, counts = self.model.roi_heads.box_coder, [len(b) for b in boxes]
        moved = coder.decode_single(deltas, torch.cat(list(boxes)).to(deltas))
        return list(clip_boxes_to_image(moved, prediction.image_size).split(counts))

    def norms(self) -> list[Norm]:
        """BatchNorm and FrozenBatchNorm layers of backbone and pyramid, in order of definition."""
        return find_norms(self, skip=("model.roi_heads",))

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that build this architecture again, without weights."""
        roi_heads, rpn = self.model.roi_heads, self.model.rpn
        return {
            "architecture": self.architecture.name,
            "classes": list(self.spec.classes),
            "image_size": list(self.spec.image_size),
            "resize": self.spec.resize,
            "mean": list(self.spec.mean),
            "std": list(self.spec.std),
            "weights": None,
            "coco91": self.coco91,
            "score_threshold": roi_heads.score_thresh,
            "nms_iou": roi_heads.nms_thresh,
            "max_detections": roi_heads.detections_per_img,
            **{f"{name}_gain": gain for name, gain in self.gains.items()},
            "backbone": self.backbone,
            "channels": self.channels,
            "width": self.width,
            "anchor_size": self.anchor_size,
            "roi_width": self.roi_width,
            "rois": roi_heads.fg_bg_sampler.size,
            "train_proposals": rpn._post_nms_top_n["training"],
            "proposals": rpn._post_nms_top_n["testing"],
            "frozen_norms": self.frozen_norms,
            "frozen_eps": self.frozen_eps,
            "sampling_seed": self.sampling_seed,
        }

    def _stage_names(self) -> tuple[str, ...]:
        return level_names("c", self._strides[:-1])

    def _map_names(self) -> tuple[str, ...]:
        return level_names("p", self._strides)

    def _predict(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding (R, roi_width), class logits (R, columns) and deltas (R, columns * 4) of pooled features (R, channels, 7, 7)."""
        roi_heads = self.model.roi_heads
        embedding = roi_heads.box_head(pooled)
        logits, deltas = roi_heads.box_predictor(embedding)
        return in_float(embedding), in_float(logits), in_float(deltas)

    def _rpn_output(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness (B, N, 1), deltas (B, N, 4), and the anchors (N, 4) of one image."""
        obj, box = in_float(prediction.raw["obj"]), in_float(prediction.raw["box"])
        return obj, box, anchors_of(self.model.rpn.anchor_generator, prediction.sizes, prediction.image_size, obj.device)

    def _proposals(self, prediction: Prediction) -> list[Tensor]:
        """(R, 4) xyxy proposals an image, without gradient, best first; how many is up to ``rpn.training``."""
        rpn, count = self.model.rpn, len(prediction)
        obj, box, anchors = self._rpn_output(prediction)
        boxes = rpn.box_coder.decode(box.detach().flatten(0, 1), [anchors] * count).view(count, -1, 4)  # (B*N, 4) -> (B, N, 4)
        sizes = [prediction.image_size] * count
        lengths = [h * w * a for h, w, a in prediction.sizes]
        proposals: list[Tensor] = rpn.filter_proposals(boxes, obj, sizes, lengths)[0]
        return proposals
