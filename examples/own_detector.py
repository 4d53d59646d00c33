"""A detector of your own behind detkd's interface, inverted for a few iterations. Seconds on a CPU:

    python examples/own_detector.py [FOLDER]

`Network`, `network_boxes` and `network_loss` stand for what you already have; `OwnDetector` is the adapter, all that detkd asks
for. The same from the command line, in this folder (docs/guides/own_detector.md):

    python -m detkd.invert teacher=checkpoint teacher._target_=own_detector.build teacher.path=null resolution=64
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, generalized_box_iou_loss

from detkd.boxes import clip_xyxy
from detkd.data.store import Store, StoreWriter
from detkd.detectors.checkpoint import fingerprint, load_checkpoint
from detkd.detectors.norms import Norm, find_norms
from detkd.inversion.augment import Compose, Flip, Jitter
from detkd.inversion.image import PyramidFactory
from detkd.inversion.layout import UniformBoxes
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Stage
from detkd.inversion.writer import StoreBatches
from detkd.losses.bn_stats import BatchNormStatistics
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.losses.tv import TotalVariation
from detkd.runtime.run import quiet
from detkd.structures import Detection, DetectorSpec, Prediction, Target, join_targets

STRIDE = 8


class Network(nn.Module):
    """Your network. Here, for every 8 x 8 cell: a logit a class, and the log-distances (in cells) to the sides of a box."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels, layers = (3, 16, 32, 64), []
        for a, b in pairwise(channels):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels[-1], num_classes + 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))  # (B, C + 4, H/8, W/8)


def network_boxes(sides: Tensor, columns: int) -> Tensor:
    """Your box coding: (B, N, 4) log-distances of N cells, in rows of ``columns``, to boxes xyxy in pixels."""
    site = torch.arange(sides.shape[1], device=sides.device)
    centre = (torch.stack([site % columns, site // columns], dim=1) + 0.5).repeat(1, 2)  # (N, 4)
    return (centre + sides.new_tensor([-1, -1, 1, 1]) * sides.clamp(max=6).exp()) * STRIDE


def network_loss(
    logits: Tensor, sides: Tensor, columns: int, image: Tensor, boxes: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Your loss: cross-entropy over all cells, GIoU at those of box centres. image, boxes, labels: (n,), (n, 4), (n,)."""
    cell = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long()
    site = (cell[:, 1] * columns + cell[:, 0]).clamp(0, logits.shape[1] - 1)
    wanted = torch.zeros_like(logits).index_put((image, site, labels), logits.new_ones(()))
    cls = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    box = generalized_box_iou_loss(network_boxes(sides, columns)[image, site], boxes, reduction="sum")
    return {"cls": cls / len(logits), "box": box / len(logits)}


class OwnDetector(nn.Module):
    """The adapter: Network as a :class:`detkd.detectors.protocol.Detector`."""

    def __init__(self, classes: Sequence[str] = ("cat", "dog"), image_size: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.spec = DetectorSpec(tuple(classes), (image_size[0], image_size[1]))
        self.network = Network(len(classes))

    def forward(self, images: Tensor) -> Prediction:
        out = self.network(images * 2 - 1)  # images come as RGB in [0, 1]; how the network wants them is the adapter's affair
        height, width = out.shape[-2:]
        cls, box = out.flatten(2).transpose(1, 2).split([len(self.spec.classes), 4], dim=2)  # (B, N, C), (B, N, 4)
        return Prediction({"cls": cls, "box": box}, ((height, width, 1),), (STRIDE,), {}, (images.shape[-2], images.shape[-1]))

    def loss(self, prediction: Prediction, targets: Sequence[Target]) -> dict[str, Tensor]:
        image, boxes, labels = join_targets(targets)
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)  # a box without area left the image in an augmentation: no object
        raw, columns = prediction.raw, prediction.sizes[0][1]
        return network_loss(raw["cls"].float(), raw["box"].float(), columns, image[real], boxes[real], labels[real])

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        boxes = clip_xyxy(network_boxes(prediction.raw["box"], prediction.sizes[0][1]), prediction.image_size)
        return [self._best(*of_image) for of_image in zip(boxes, prediction.raw["cls"].sigmoid())]

    def norms(self) -> list[Norm]:
        return find_norms(self)

    def arguments(self) -> dict[str, Any]:
        return {"classes": list(self.spec.classes), "image_size": list(self.spec.image_size)}

    def _best(self, boxes: Tensor, scores: Tensor) -> Detection:
        site, label = (scores > 0.05).nonzero(as_tuple=True)
        keep = batched_nms(boxes[site], scores[site, label], label, 0.5)[:100]
        return {"boxes": boxes[site][keep], "labels": label[keep], "scores": scores[site, label][keep]}


def build(path: str | None = None, classes: Sequence[str] = ("cat", "dog"), seed: int = 0) -> OwnDetector:
    """What a config names: the detector, with random weights or those of a file that ``save_checkpoint`` wrote."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = OwnDetector(classes)
    if path is not None:
        load_checkpoint(path, detector)
    return detector


class Losses(lightning.Callback):
    """Remember the loss of every iteration."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if outputs["work"] is not None:
            self.seen.append(float(outputs["loss"]))


def invert(teacher: OwnDetector, folder: Path, iterations: int = 60) -> tuple[float, float, Store]:
    """Optimise four images, write them as a data set; the loss at the first and last iteration, and the set."""
    loss = Composite(
        {"detection": DetectionLoss(), "bn_stats": BatchNormStatistics(form="kl"), "tv": TotalVariation(of="clean")},
        {"detection": 1.0, "bn_stats": 1.0, "tv": 2.0},
    )
    stage = Stage((64, 64), iterations, lambda parameters: torch.optim.Adam(parameters, lr=0.05, betas=(0.9, 0.99)))
    layout, augmentation = UniformBoxes(size=(0.3, 0.75)), Compose([Jitter(), Flip()])
    recipe = {"example": "own_detector", "iterations": iterations}
    writer = StoreWriter(folder, recipe, teacher.spec.classes, (64, 64), teacher_sha256=fingerprint(teacher), seed=0)
    batches = StoreBatches(writer, n_batches=1)
    module = InversionModule(
        teacher, PyramidFactory(levels=5), loss, layout, augmentation, [stage], n_images=4, batch_size=4, batches=batches
    )
    losses = Losses()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[losses],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module)
    batches.close()
    return losses.seen[0], losses.seen[-1], writer.finish(1)


def main() -> None:
    quiet()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="own_detector"))
    before, after, store = invert(build(), folder)
    print(f"loss {before:.2f} -> {after:.2f}; {len(store)} images of {' and '.join(store.classes)} in {store.root}")


if __name__ == "__main__":
    main()
