"""DarknetDetector: a cfg behind the detector interface. Also YOLOv3, YOLOv3-SPP and YOLOv3-tiny without a cfg."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from detkd.boxes import clip_xyxy
from detkd.detectors.darknet import yolo
from detkd.detectors.darknet.architectures import (
    COCO_ANCHORS,
    COCO_ANCHORS_TINY,
    Anchors,
    yolov3_sections,
    yolov3_tiny_sections,
)
from detkd.detectors.darknet.cfg import format_cfg, parse_cfg, with_classes
from detkd.detectors.darknet.network import Darknet
from detkd.detectors.darknet.weights import DEFAULT_HEADER, read_weights, write_weights
from detkd.detectors.files import File, locate, read_text
from detkd.detectors.norms import Norm, find_norms
from detkd.errors import InputError
from detkd.structures import Detection, DetectorSpec, Prediction, Resize, Target


class DarknetDetector(nn.Module):
    """A YOLO of darknet.

    Args:
        cfg: the *text* of a .cfg. source: what to call it in messages.
        classes: names, as many as the cfg's [yolo] layers have.
        image_size: (height, width) in pixels; None takes the cfg's.
        resize: how images are brought to image_size.
        box_gain, obj_gain, cls_gain: of the loss (the released DIODE values); obj_gain is multiplied by
            image width / 320, cls_gain by classes / 80. iou_threshold: anchors with a larger width-height IoU take part.
        score_threshold, nms_iou, max_detections: of decode.

    Raises InputError on a cfg that cannot be built, naming the line. ``raw``: box (B, N, 4), obj (B, N, 1), cls (B, N, C).
    ``features``: the input of the convolution before each [yolo], named by stride ("p3" is stride 8).
    """

    candidates = 2000  # best (site, class) pairs an image that enter NMS

    def __init__(
        self,
        cfg: str,
        classes: Sequence[str],
        image_size: tuple[int, int] | None = None,
        resize: Resize = "stretch",
        box_gain: float = 3.54,
        obj_gain: float = 64.3,
        cls_gain: float = 37.4,
        iou_threshold: float = 0.225,
        score_threshold: float = 0.005,
        nms_iou: float = 0.45,
        max_detections: int = 100,
        source: str = "cfg",
    ) -> None:
        super().__init__()
        sections = parse_cfg(cfg, source)
        self.network = Darknet(sections)
        if self.network.in_channels != 3:
            raise InputError(f"{sections[0].where}: expected channels=3, found {self.network.in_channels}")
        for spec in self.network.yolos:
            if spec.classes != len(classes):
                raise InputError(
                    f"{sections[1 + spec.layer].where}: expected classes={len(classes)} for the {len(classes)} class names given, "
                    f"found classes={spec.classes}"
                )
        if image_size is None:
            image_size = sections[0].integer("height", 416, minimum=1), sections[0].integer("width", 416, minimum=1)
        self.spec = DetectorSpec(tuple(classes), (image_size[0], image_size[1]), resize=resize)
        self.header = DEFAULT_HEADER
        self.box_gain, self.obj_gain, self.cls_gain = box_gain, obj_gain, cls_gain
        self.iou_threshold = iou_threshold
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self._cfg = format_cfg(sections)
        # Levels fine first, whatever the order of the cfg.
        self._order = sorted(range(len(self.network.yolos)), key=lambda i: self.network.yolos[i].stride)
        self._levels = [self.network.yolos[i] for i in self._order]
        for i, level in enumerate(self._levels):
            self.register_buffer(f"anchors{i}", torch.tensor(level.anchors), persistent=False)
        self.max_stride = int(max(self.network._strides))
        self._initialise_heads()

    def forward(self, images: Tensor) -> Prediction:
        height, width = images.shape[-2:]
        if height % self.max_stride or width % self.max_stride:
            raise InputError(f"expected an image size that {self.max_stride} divides, got {height}x{width}")
        heads = self.network(images)
        raw: dict[str, list[Tensor]] = {"box": [], "obj": [], "cls": []}
        sizes, features = [], {}
        for index, level in zip(self._order, self._levels, strict=True):
            before, head = heads[index]
            flat = yolo.sites(head, len(level.anchors))  # (B, H*W*A, 5+C)
            for name, part in zip(raw, torch.split(flat, [4, 1, level.classes], dim=-1), strict=True):
                raw[name].append(part)
            sizes.append((head.shape[-2], head.shape[-1], len(level.anchors)))
            features[f"p{round(math.log2(level.stride))}"] = before
        return Prediction(
            raw={name: torch.cat(parts, dim=1) for name, parts in raw.items()},
            sizes=tuple(sizes),
            strides=tuple(level.stride for level in self._levels),
            features=features,
            image_size=(height, width),
            geometry=tuple((level.anchors, level.scale_x_y) for level in self._levels),
        )

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """{"box", "obj", "cls"}, float32, with the gains of the constructor."""
        parts = zip(prediction.levels("box"), prediction.levels("obj"), prediction.levels("cls"), strict=True)
        unweighted = yolo.yolo_loss(
            [torch.cat(level, dim=-1) for level in parts],
            prediction.sizes,
            self._anchors(),
            [level.scale_x_y for level in self._levels],
            targets,
            prediction.image_size,
            self.iou_threshold,
        )
        gains = {
            "box": self.box_gain,
            "obj": self.obj_gain * prediction.image_size[1] / 320,
            "cls": self.cls_gain * len(self.spec.classes) / 80,
        }
        return {name: gains[name] * value for name, value in unweighted.items()}

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        """Score = objectness x class probability; NMS within classes; best first; boxes clipped to the image."""
        boxes = self.boxes(prediction)  # (B, N, 4)
        scores = prediction.raw["obj"].float().sigmoid() * prediction.raw["cls"].float().sigmoid()  # (B, N, C)
        detections: list[Detection] = []
        for image_boxes, image_scores in zip(boxes, scores, strict=True):
            best, index = image_scores.flatten().topk(min(self.candidates, image_scores.numel()))
            index = index[best > self.score_threshold]
            best = best[: len(index)]
            site, label = index // image_scores.shape[1], index % image_scores.shape[1]
            keep = batched_nms(image_boxes[site], best, label, self.nms_iou)[: self.max_detections]
            detections.append({"boxes": image_boxes[site][keep], "labels": label[keep], "scores": best[keep]})
        return detections

    def norms(self) -> list[Norm]:
        return find_norms(self)

    def arguments(self) -> dict[str, Any]:
        return {
            "cfg": self._cfg,
            "classes": list(self.spec.classes),
            "image_size": list(self.spec.image_size),
            "resize": self.spec.resize,
            "box_gain": self.box_gain,
            "obj_gain": self.obj_gain,
            "cls_gain": self.cls_gain,
            "iou_threshold": self.iou_threshold,
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
            "max_detections": self.max_detections,
        }

    def load_weights(self, path: Path) -> None:
        """Read a .weights file. Raises InputError when it does not fit; the detector is then unchanged."""
        self.header = read_weights(self.network, path)

    def save_weights(self, path: Path) -> None:
        """Write a .weights file, which with the detector's cfg runs in any darknet."""
        write_weights(self.network, path, self.header)

    def _anchors(self) -> list[Tensor]:
        return [self.get_buffer(f"anchors{i}") for i in range(len(self._levels))]

    def boxes(self, prediction: Prediction) -> Tensor:
        """(B, N, 4) boxes of all sites, in the order of ``raw``: xyxy in pixels, clipped to the image."""
        boxes = []
        levels = zip(prediction.levels("box"), prediction.sizes, self._anchors(), self._levels, strict=True)
        for raw_box, size, anchors_wh, level in levels:
            corner, cell, anchor_wh = yolo.site_grid(size, anchors_wh, prediction.image_size)
            boxes.append(yolo.decode_boxes(raw_box.float(), corner, cell, anchor_wh, level.scale_x_y))
        return clip_xyxy(torch.cat(boxes, dim=1), prediction.image_size)

    def _initialise_heads(self) -> None:
        """Start objectness at 1 % and classes at a few per cent, so that the first steps do not fight the background."""
        for level in self._levels:
            conv = self.network.layers[level.layer - 1].conv
            assert isinstance(conv, nn.Conv2d)
            if conv.bias is not None:
                bias = conv.bias.detach().view(len(level.anchors), -1)
                bias.zero_()
                bias[:, 4] = -math.log(99)
                bias[:, 5:] = -math.log(level.classes / 0.6)


def from_cfg(
    cfg: File | str | Path,
    classes: Sequence[str],
    image_size: tuple[int, int] | None = None,
    resize: Resize = "stretch",
    fit_classes: bool = False,
) -> DarknetDetector:
    """Build a detector from a .cfg file (architecture only).

    fit_classes: give the heads as many classes as there are names, for training from scratch on other classes.
    """
    path = locate(cfg)
    text = read_text(path)
    if fit_classes:
        text = format_cfg(with_classes(parse_cfg(text, path.name), len(classes)))
    return DarknetDetector(text, classes, image_size, resize, source=path.name)


def yolov3(
    classes: Sequence[str],
    image_size: tuple[int, int] = (416, 416),
    resize: Resize = "letterbox",
    width: float = 1.0,
    anchors: Anchors | None = None,
    spp: bool = False,
    box_gain: float = 3.54,
    obj_gain: float = 64.3,
    cls_gain: float = 37.4,
    iou_threshold: float = 0.225,
) -> DarknetDetector:
    """YOLOv3, or with ``spp`` YOLOv3-SPP, of any width. anchors: nine (width, height) in pixels; None takes COCO's."""
    sections = yolov3_sections(len(classes), image_size, width, anchors or COCO_ANCHORS, spp)
    gains = (box_gain, obj_gain, cls_gain, iou_threshold)
    return DarknetDetector(format_cfg(sections), classes, image_size, resize, *gains, source=sections[0].where.split(" ")[0])


def yolov3_tiny(
    classes: Sequence[str],
    image_size: tuple[int, int] = (416, 416),
    resize: Resize = "letterbox",
    width: float = 1.0,
    anchors: Anchors | None = None,
    box_gain: float = 3.54,
    obj_gain: float = 64.3,
    cls_gain: float = 37.4,
    iou_threshold: float = 0.225,
) -> DarknetDetector:
    """YOLOv3-tiny of any width. anchors: six (width, height) in pixels; None takes COCO's."""
    sections = yolov3_tiny_sections(len(classes), image_size, width, anchors or COCO_ANCHORS_TINY)
    gains = (box_gain, obj_gain, cls_gain, iou_threshold)
    return DarknetDetector(format_cfg(sections), classes, image_size, resize, *gains, source="yolov3_tiny")
