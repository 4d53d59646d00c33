"""Small stand-ins for real parts: a detector that trains in seconds, a dataset in memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, generalized_box_iou_loss

from detkd.boxes import clip_xyxy, cxcywh_to_xyxy
from detkd.detectors.norms import Norm, find_norms
from detkd.structures import Detection, DetectorSpec, Prediction, Target


class TinyDetector(nn.Module):
    """A one-level, anchor-free, YOLO-like detector: three strided convolutions with BatchNorm and a 1x1 head.

    Args:
        classes: names. image_size: (height, width), any multiple of 8. width: channels of the first convolution.
        score_threshold, nms_iou: of :meth:`decode`, which keeps at most 100 boxes.

    A cell of 8 x 8 pixels predicts one box: centre inside the cell (sigmoid), size 16 px * exp(t), objectness, classes.
    """

    stride = 8

    def __init__(
        self,
        classes: Sequence[str] = ("circle", "square", "cross"),
        image_size: Sequence[int] = (64, 64),
        width: int = 8,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
    ) -> None:
        super().__init__()
        height, length = image_size
        self.spec = DetectorSpec(tuple(classes), (height, length), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        self.width, self.score_threshold, self.nms_iou = width, score_threshold, nms_iou
        channels = [3, width, 2 * width, 4 * width]
        self.stages = nn.ModuleList(_conv_bn(a, b) for a, b in pairwise(channels))
        self.head = nn.Conv2d(channels[-1], 5 + len(classes), 1)
        nn.init.constant_(self.head.bias[4:5], -4.0)  # few cells hold an object

    def forward(self, images: Tensor) -> Prediction:
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.spec.mean, self.spec.std))
        x, features = (images - mean) / std, {}
        for number, stage in enumerate(self.stages, start=1):
            x = features[f"c{number}"] = stage(x)
        out = self.head(x)  # (B, 5 + C, h, w)
        box, obj, cls = out.flatten(2).transpose(1, 2).split([4, 1, len(self.spec.classes)], dim=-1)  # (B, h*w, K) each
        height, width = out.shape[-2:]
        return Prediction(
            raw={"box": box, "obj": obj, "cls": cls},
            sizes=((height, width, 1),),
            strides=(self.stride,),
            features=features,
            image_size=(images.shape[-2], images.shape[-1]),
        )

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Parts "box" (GIoU), "obj", "cls" (BCE), each summed over cells, mean over images. A box belongs to the cell of its centre.

        A box without area is no object.
        """
        targets = [_solid(target) for target in targets]
        raw = {name: value.float() for name, value in prediction.raw.items()}
        (_, columns, _), images = prediction.sizes[0], len(prediction)
        boxes = torch.cat([t["boxes"] for t in targets]).to(raw["box"])  # (n, 4)
        labels = torch.cat([t["labels"] for t in targets]).to(boxes.device)
        counts = torch.tensor([len(t["boxes"]) for t in targets], device=boxes.device)
        image = torch.repeat_interleave(torch.arange(images, device=boxes.device), counts)
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 / self.stride).long()  # (n, 2) x, y
        last = centres.new_tensor([columns - 1, prediction.sizes[0][0] - 1])
        x, y = torch.minimum(centres.clamp(min=0), last).unbind(1)
        site = y * columns + x
        objectness = torch.zeros_like(raw["obj"]).index_put((image, site), raw["obj"].new_ones(1))
        one_hot = F.one_hot(labels, len(self.spec.classes)).to(boxes)
        sums = {
            "box": generalized_box_iou_loss(self._boxes_xyxy(prediction)[image, site], boxes, reduction="sum"),
            "obj": F.binary_cross_entropy_with_logits(raw["obj"], objectness, reduction="sum"),
            "cls": F.binary_cross_entropy_with_logits(raw["cls"][image, site], one_hot, reduction="sum"),
        }
        return {name: value / images for name, value in sums.items()}

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        boxes = clip_xyxy(self._boxes_xyxy(prediction), prediction.image_size)  # (B, N, 4)
        scores = prediction.raw["obj"].float().sigmoid() * prediction.raw["cls"].float().sigmoid()  # (B, N, C)
        found: list[Detection] = []
        for of_image, of_class in zip(boxes, scores):
            site, label = (of_class > self.score_threshold).nonzero(as_tuple=True)
            score = of_class[site, label]
            keep = batched_nms(of_image[site], score, label, self.nms_iou)[:100]
            found.append({"boxes": of_image[site][keep], "labels": label[keep], "scores": score[keep]})
        return found

    def norms(self) -> list[Norm]:
        return find_norms(self)

    def arguments(self) -> dict[str, Any]:
        return {
            "classes": list(self.spec.classes),
            "image_size": list(self.spec.image_size),
            "width": self.width,
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
        }

    def _boxes_xyxy(self, prediction: Prediction) -> Tensor:
        """(B, N, 4) in pixels."""
        raw = prediction.raw["box"].float()
        rows, columns, _ = prediction.sizes[0]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        corner = torch.stack([x, y], -1).reshape(-1, 2).to(raw)  # (N, 2) cells
        centre = (corner + raw[..., :2].sigmoid()) * self.stride
        size = 2 * self.stride * raw[..., 2:].clamp(max=4).exp()
        return cxcywh_to_xyxy(torch.cat([centre, size], -1))


class Squares:
    """Images with one bright square each, in memory: samples, ground truth and length as of a CocoDataset, at the network's size.

    The label is the colour channel that is lit; image ids start at 100.
    """

    def __init__(self, n: int = 8, size: int = 64, seed: int = 0, labelled: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size, self.labelled = size, labelled
        self.images = torch.randint(0, 60, (n, 3, size, size), generator=generator, dtype=torch.uint8)
        side = torch.randint(size // 5, size // 2, (n, 1), generator=generator)
        corner = (torch.rand(n, 2, generator=generator) * (size - side)).long()
        self.boxes = torch.cat([corner, corner + side], 1).float()  # (n, 4) xyxy
        self.labels = torch.randint(0, 3, (n,), generator=generator)
        for image, (x1, y1, x2, y2), label in zip(self.images, self.boxes.long().tolist(), self.labels.tolist()):
            image[label, y1:y2, x1:x2] = 250

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        target = {"boxes": self.boxes[index : index + 1], "labels": self.labels[index : index + 1]}
        return {
            "image": self.images[index],
            "target": target if self.labelled else None,
            "image_id": 100 + index,
            "original_size": (self.size, self.size),
            "placement": InPlace(),
        }

    def ground_truth(self, index: int) -> dict[str, Tensor]:
        target = self[index]["target"]
        extent = target["boxes"][:, 2:] - target["boxes"][:, :2]
        return {**target, "iscrowd": torch.zeros(1, dtype=torch.bool), "area": extent.prod(1)}


class InPlace:
    """The placement of an image that was not resized."""

    def undo_xyxy(self, boxes_xyxy: Tensor, original_size: tuple[int, int]) -> Tensor:
        return clip_xyxy(boxes_xyxy, original_size)


def _solid(target: Target) -> Target:
    keep = (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(dim=1)
    return {"boxes": target["boxes"][keep], "labels": target["labels"][keep]}


def _conv_bn(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.1))
