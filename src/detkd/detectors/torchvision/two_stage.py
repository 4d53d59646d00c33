"""What Faster R-CNN, its C4 form and Cascade R-CNN share: the RPN, the sampling, and boxes that RoI heads look at in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

from detkd.detectors.modes import evaluating, flagged, not_learning
from detkd.detectors.norms import Norm, find_norms
from detkd.detectors.torchvision.backbones import pyramid
from detkd.detectors.torchvision.base import (
    anchors_of,
    check_count,
    flatten_levels,
    head_targets,
    in_float,
    level_names,
    level_sizes,
    pick_maps,
    size_of,
)
from detkd.detectors.torchvision.detector import Settings, TorchvisionDetector
from detkd.detectors.torchvision.sampling import SeededSampler
from detkd.structures import Detection, Prediction, RoI, Target


@dataclass(frozen=True)
class Levels:
    """Which maps a two-stage detector has, by their names in ``Prediction.features``, fine first.

    Args:
        strides: pixels a cell of the maps that the RPN reads. stages: of the backbone. rpn: the maps that the RPN reads. rois: those of
            them that the RoI heads read, a beginning of ``rpn``.
    """

    strides: tuple[int, ...]
    stages: tuple[str, ...]
    rpn: tuple[str, ...]
    rois: tuple[str, ...]


def pyramid_levels(strides: tuple[int, ...]) -> Levels:
    """Those of a pyramid whose coarsest map is the RPN's alone."""
    maps = level_names("p", strides)
    return Levels(strides, level_names("c", strides[:-1]), maps, maps[:-1])


class TwoStageRCNN(TorchvisionDetector):
    """The part of a :class:`~detkd.detectors.protocol.TwoStage` that does not depend on backbone and heads.

    ``raw`` is the RPN's, {obj: (B, N, 1), box: (B, N, 4)}. ``norms()`` leaves the norms of the RoI heads out. The RoI heads run in
    ``loss`` and ``decode``, on proposals made from ``raw`` without gradient.

    Args:
        model: with torchvision's ``backbone`` (of ``body`` and ``fpn``), ``rpn`` and ``roi_heads``, the last a RoIHeads or, of a cascade,
            a ModuleList of them.
        gains: factors on rpn_obj, rpn_box, roi_cls and roi_box. stage_gains: further factors on the RoI parts, a stage each.
        levels: the maps. sampling_seed: of the detector's own generator, from which anchors and RoIs are sampled.
        settings, built: as of :class:`~detkd.detectors.torchvision.detector.TorchvisionDetector`.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        gains: Mapping[str, float],
        built: Mapping[str, Any],
        levels: Levels,
        sampling_seed: int,
        stage_gains: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(model, settings, gains, built)
        self.generator = torch.Generator()
        heads = self._heads()
        self.stages = len(heads)
        for module in (model.rpn, *heads):
            given = module.fg_bg_sampler
            module.fg_bg_sampler = SeededSampler(given.batch_size_per_image, given.positive_fraction, self.generator)
        self.sampling_seed = sampling_seed
        self.reseed(sampling_seed)
        self._levels, self._stage_gains = levels, tuple(stage_gains)

    def reseed(self, seed: int) -> None:
        """Start the sampling of anchors and RoIs again from ``seed``: what follows depends on it and the inputs alone."""
        self.generator.manual_seed(seed)

    def forward(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) RGB images in [0, 1] to a Prediction. The RoI heads do not run."""
        stages, maps = pyramid(self.model.backbone, self.normalise(images))
        rpn = self.model.rpn
        anchors = rpn.anchor_generator.num_anchors_per_location()
        objectness, deltas = rpn.head(list(maps.values()))
        return Prediction(
            raw={"obj": flatten_levels(objectness, anchors, 1), "box": flatten_levels(deltas, anchors, 4)},
            sizes=level_sizes(maps.values(), anchors),
            strides=self._levels.strides,
            features=dict(zip(self._levels.stages, stages.values())) | dict(zip(self._levels.rpn, maps.values())),
            image_size=size_of(images),
        )

    def loss(
        self, prediction: Prediction, targets: Sequence[Target], proposals: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """{rpn_obj, rpn_box, roi_cls, roi_box}: BCE, smooth L1, cross-entropy, smooth L1 over sampled anchors and RoIs, times the gains.

        A cascade has a roi_cls and roi_box of each stage, numbered from 1. Each later stage samples from the RoIs of the one before, as
        moved by it; ground truth is added to the boxes of every stage as torchvision does, and is itself not moved on.
        Anchors and RoIs are drawn from the detector's own generator (:meth:`reseed`); the global random state is not touched.
        In eval mode the norms of the RoI heads stay as they are, in train mode they are trained.
        proposals: boxes (r, 4) an image, xyxy in pixels, in place of the RPN's own for the RoI parts.
        A batch without any proposal and box gets the whole image as background RoI, where torchvision's loss is nan.
        """
        check_count(len(prediction), targets)
        obj, _, anchors = self._rpn_output(prediction)
        wanted = head_targets(targets, self.labels, anchors)
        parts = self._rpn_loss(prediction, wanted)
        if proposals is None:
            with flagged(self.model.rpn, training=True):
                boxes = self._proposals(prediction)
        else:
            boxes = [p.detach().to(obj) for p in proposals]
        for stage, head in enumerate(self._heads()):
            suffix = f"_{stage + 1}" if self.stages > 1 else ""
            boxes = _never_empty(boxes, wanted, prediction.image_size)
            sampled, _, labels, deltas = head.select_training_samples(boxes, wanted)
            embedding, logits, found = self._predict(self.pool(prediction, sampled), stage)
            judged = zip(("roi_cls", "roi_box"), fastrcnn_loss(logits, found, labels, deltas), strict=True)
            parts |= {name + suffix: self.gains[name] * self._stage_gains[stage] * part for name, part in judged}
            if stage + 1 < self.stages:
                boxes = self.refine(prediction, sampled, self._roi(embedding, logits, found), stage)
                boxes = [_to_go_on(after, before, t["boxes"]) for after, before, t in zip(boxes, sampled, wanted)]
        return parts

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        """Detections as torchvision's own, one an image; of a 91-column head those of the 80 classes.

        The RoI heads run in eval mode, also while the detector is in training, so that their norms learn nothing from it.
        """
        boxes, logits, deltas = self.judge(prediction, self.propose(prediction))
        sizes = [prediction.image_size] * len(prediction)
        found = zip(*self.last_head.postprocess_detections(logits, deltas, boxes, sizes))
        return [self.labels.to_detection({"boxes": b, "scores": s, "labels": c}) for b, s, c in found]

    @property
    def last_head(self) -> Any:
        """torchvision's RoIHeads of the last stage, with the settings of decoding."""
        return self._heads()[-1]

    @torch.no_grad()
    def judge(self, prediction: Prediction, boxes: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """What decoding reads of proposals (r, 4) an image, R in all, after all stages, the RoI heads in eval mode.

        Returns the boxes that the last stage looked at, (r, 4) an image, logits (R, columns) and box corrections (R, columns * 4) of
        the head's columns.
        """
        looked_at, seen = list(boxes), []
        with evaluating(self.model.roi_heads):
            for stage in range(self.stages):
                pooled = self.pool(prediction, looked_at)
                embedding, logits, deltas = self._predict(pooled, stage)
                seen.append(logits)
                if stage + 1 < self.stages:
                    looked_at = self.refine(prediction, looked_at, self._roi(embedding, logits, deltas), stage)
            return looked_at, self._joined(seen, pooled), deltas

    @torch.no_grad()
    def propose(self, prediction: Prediction) -> list[Tensor]:
        """The (R, 4) xyxy proposals an image that decoding looks at: at most ``proposals``, best first."""
        with evaluating(self.model.rpn):
            return self._proposals(prediction)

    def pool(self, prediction: Prediction, boxes: Sequence[Tensor], level: Literal["all"] | None = None) -> Tensor:
        """RoIAlign of boxes (r, 4) an image, xyxy in pixels, R in all, from the L maps that feed the RoI heads (p2 to p5; c4).

        level: None for (R, C, h, w) from the level that a box's size assigns it to (FPN paper, equation 1);
            "all" for (R, L, C, h, w), the same box on each.
        """
        maps = [in_float(m) for m in pick_maps(prediction.features, self._levels.rois)]
        given, pooler = [b.to(maps[0]) for b in boxes], self._heads()[0].box_roi_pool
        if level == "all":
            every: Tensor = pooler.every(maps, given)
            return every
        named = {str(i): m for i, m in enumerate(maps)}  # torchvision's names
        pooled: Tensor = pooler(named, given, [prediction.image_size] * len(prediction))
        return pooled

    def roi_head(self, pooled: Tensor, stage: int = 0) -> RoI:
        """What the RoI head of a stage says of pooled features (R, C, h, w); of a 91-column head the 80 classes.

        Its norms follow the detector's mode but learn nothing here.
        """
        with not_learning(self.model.roi_heads):
            return self._roi(*self._predict(pooled, stage))

    @torch.no_grad()
    def refine(self, prediction: Prediction, boxes: Sequence[Tensor], roi: RoI, stage: int = 0) -> list[Tensor]:
        """The boxes (r, 4) an image, each moved by the correction of the class that the RoI head sees in it, clipped to the image.

        A box that is taken for background moves by its most likely class. In a cascade all classes have the same correction.
        """
        best = roi.logits[:, 1:].argmax(1)  # (R,)
        deltas = in_float(roi.deltas).gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]  # (R, C, 4) -> (R, 4)
        coder, counts = self._heads()[stage].box_coder, [len(b) for b in boxes]
        moved = coder.decode_single(deltas, torch.cat(list(boxes)).to(deltas))
        return list(clip_boxes_to_image(moved, prediction.image_size).split(counts))

    def head_modules(self) -> dict[str, nn.Module]:
        """All behind the pyramid that has weights: the head of the RPN, and the RoI heads of all stages."""
        return {"rpn": self.model.rpn.head, "roi_heads": self.model.roi_heads}

    def norms(self) -> list[Norm]:
        """BatchNorm and FrozenBatchNorm layers of backbone and pyramid, in order of definition."""
        return find_norms(self, skip=("model.roi_heads",))

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments that build this architecture again, without weights."""
        rpn = self.model.rpn
        return super().arguments() | {
            "rois": self.last_head.fg_bg_sampler.size,
            "train_proposals": rpn._post_nms_top_n["training"],
            "proposals": rpn._post_nms_top_n["testing"],
            "sampling_seed": self.sampling_seed,
        }

    def _decoders(self) -> list[Any]:
        return self._heads()

    def _heads(self) -> list[Any]:
        """torchvision's RoIHeads of each stage."""
        heads = self.model.roi_heads
        return list(heads) if isinstance(heads, nn.ModuleList) else [heads]

    def _predict(self, pooled: Tensor, stage: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding (R, D), class logits (R, columns) and deltas (R, columns * 4) of pooled features (R, C, h, w)."""
        head = self._heads()[stage]
        embedding = head.box_head(pooled)
        logits, deltas = head.box_predictor(embedding)
        return in_float(embedding), in_float(logits), in_float(deltas)

    def _roi(self, embedding: Tensor, logits: Tensor, deltas: Tensor) -> RoI:
        return RoI(embedding, self.labels.select(logits), self.labels.select_deltas(deltas))

    def _joined(self, seen: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Logits (R, columns) of a detection, from those of all stages and the pooled features that the last one saw: the last's own."""
        return seen[-1]

    def _rpn_output(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness (B, N, 1), deltas (B, N, 4), and the anchors (N, 4) of one image."""
        obj, box = in_float(prediction.raw["obj"]), in_float(prediction.raw["box"])
        return obj, box, anchors_of(self.model.rpn.anchor_generator, prediction.sizes, prediction.image_size, obj.device)

    def _rpn_loss(self, prediction: Prediction, wanted: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        rpn = self.model.rpn
        obj, box, anchors = self._rpn_output(prediction)
        every = [anchors] * len(prediction)
        labels, matched = rpn.assign_targets_to_anchors(every, wanted)
        deltas = rpn.box_coder.encode(matched, every)
        rpn_obj, rpn_box = rpn.compute_loss(obj.flatten(0, 1), box.flatten(0, 1), labels, deltas)  # (B*N, 1), (B*N, 4)
        return {"rpn_obj": self.gains["rpn_obj"] * rpn_obj, "rpn_box": self.gains["rpn_box"] * rpn_box}

    def _proposals(self, prediction: Prediction) -> list[Tensor]:
        """(R, 4) xyxy proposals an image, without gradient, best first; how many is up to ``rpn.training``."""
        rpn, count = self.model.rpn, len(prediction)
        obj, box, anchors = self._rpn_output(prediction)
        boxes = rpn.box_coder.decode(box.detach().flatten(0, 1), [anchors] * count).view(count, -1, 4)  # (B*N, 4) -> (B, N, 4)
        sizes = [prediction.image_size] * count
        lengths = [h * w * a for h, w, a in prediction.sizes]
        proposals: list[Tensor] = rpn.filter_proposals(boxes, obj, sizes, lengths)[0]
        return proposals


def _never_empty(boxes: list[Tensor], wanted: Sequence[Mapping[str, Tensor]], image_size: tuple[int, int]) -> list[Tensor]:
    """The boxes, or the whole image where a batch has neither a box to look at nor a target."""
    if any(len(b) for b in boxes) or any(len(t["boxes"]) for t in wanted):
        return boxes
    height, width = image_size
    return [boxes[0].new_tensor([[0, 0, width, height]])] * len(boxes)


def _to_go_on(after: Tensor, before: Tensor, truth: Tensor) -> Tensor:
    """Of the boxes ``after`` a stage (r, 4) those that the next may sample: they have an area, and were not ground truth ``before``."""
    given = (before[:, None] == truth.to(before)[None]).all(2).any(1)  # (r, n, 4) -> (r,)
    return after[~given & (after[:, 2:] > after[:, :2]).all(1)]
