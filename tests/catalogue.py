"""One catalogue of small detectors and of all loss terms, which drives the generic tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from detkd_tests_doubles import TinyDetector  # put there by conftest.py
from torch import Tensor, nn

from detkd.detectors.darknet.detector import from_cfg, yolov3, yolov3_tiny
from detkd.detectors.files import read_names
from detkd.detectors.torchvision import FCOS, SSD, CascadeRCNN, FasterRCNN, FasterRCNNC4, RetinaNet
from detkd.detectors.ultralytics import UltralyticsDetector
from detkd.losses.bn_stats import BatchNormStatistics
from detkd.losses.careg import ClassAwareRegression
from detkd.losses.contrastive import Contrastive
from detkd.losses.crosskd import CrossKD
from detkd.losses.cwd import CWD
from detkd.losses.defeat_backbone import DeFeatBackbone
from detkd.losses.defeat_neck import DeFeatNeck
from detkd.losses.defeat_proposals import DeFeatProposals
from detkd.losses.detection import DetectionLoss
from detkd.losses.feature_l1 import FeatureL1
from detkd.losses.feature_l2 import FeatureL2
from detkd.losses.feature_smooth_l1 import FeatureSmoothL1
from detkd.losses.l1_ms_ssim import L1MSSSIM
from detkd.losses.mgd import MGD
from detkd.losses.mimic import Mimic
from detkd.losses.ms_ssim import MSSSIM
from detkd.losses.pixel_l2 import PixelL2
from detkd.losses.pkd import PKD
from detkd.losses.prediction import PredictionImitation
from detkd.losses.sgfi import SGFI
from detkd.losses.small_copy import SmallCopy
from detkd.losses.ssim import SSIM
from detkd.losses.tv import TotalVariation
from detkd.structures import Target

CLASSES = ("cat", "dog", "kite")
QUARTER: dict[str, Any] = {"classes": CLASSES, "image_size": (64, 64), "backbone": "resnet18", "channels": 48, "width": 0.25}
SMALL_ROI: dict[str, Any] = {"roi_width": 64, "rois": 32, "train_proposals": 64, "proposals": 32, "anchor_size": 8}
LOW: dict[str, Any] = {"score_threshold": 0.001}  # below the scores of random heads, so that decode has something to sort
SHARED_CFG = Path(os.environ.get("DETKD_SHARED", "../shared")) / "weights" / "yolo-fastest-1.1.cfg"


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The options but those of some names."""
    return {k: v for k, v in options.items() if k not in names}


@dataclass(frozen=True)
class Case:
    """A detector to build. folds: whether it has convolutions with a BatchNorm behind them. needs: a file; package: an optional one."""

    build: Callable[[], Any]
    folds: bool = True
    needs: Path | None = None
    package: str | None = None


DETECTORS: dict[str, Case] = {
    "double": Case(lambda: TinyDetector(CLASSES, **LOW)),
    "yolov3_tiny": Case(lambda: yolov3_tiny(CLASSES, (64, 64), width=0.25)),
    "yolov3": Case(lambda: yolov3(CLASSES, (64, 64), width=0.125)),
    "yolov3_spp": Case(lambda: yolov3(CLASSES, (64, 64), width=0.125, spp=True)),
    "yolo_fastest": Case(
        lambda: from_cfg(SHARED_CFG, read_names(SHARED_CFG.parent / "coco.names"), (64, 64)), needs=SHARED_CFG
    ),
    "ssdlite": Case(lambda: SSD("ssdlite320_mobilenet_v3_large", CLASSES, (96, 96), **LOW)),
    "retinanet_r18": Case(lambda: RetinaNet(anchor_size=8, **QUARTER, **LOW)),
    "fcos_r18": Case(lambda: FCOS(**QUARTER, **LOW)),
    "fcos_r18_frozen": Case(lambda: FCOS(frozen_norms=True, **QUARTER, **LOW)),
    "faster_rcnn_r18": Case(lambda: FasterRCNN(**SMALL_ROI, **QUARTER, **LOW)),
    "faster_rcnn_c4_r18": Case(lambda: FasterRCNNC4(**without(SMALL_ROI | QUARTER | LOW, "roi_width", "channels"))),
    "cascade_rcnn_r18": Case(lambda: CascadeRCNN(**(SMALL_ROI | {"anchor_size": 24, "proposals": 64} | QUARTER | LOW))),
    "yolov8n": Case(lambda: UltralyticsDetector(CLASSES, "yolov8n", (64, 64), width=0.125), package="ultralytics"),
    "yolo11n": Case(lambda: UltralyticsDetector(CLASSES, "yolo11n", (64, 64), width=0.125), package="ultralytics"),
}

TERMS: dict[str, Callable[[], Any]] = {
    "detection": DetectionLoss,
    "bn_stats_kl": lambda: BatchNormStatistics("kl"),
    "bn_stats_l2": lambda: BatchNormStatistics("l2"),
    "tv": TotalVariation,
    "pixel_l2": PixelL2,
    "small_copy": SmallCopy,
    "mimic": Mimic,
    "feature_l1": FeatureL1,
    "feature_l2": FeatureL2,
    "feature_smooth_l1": FeatureSmoothL1,
    "ssim": SSIM,
    "ms_ssim": MSSSIM,
    "l1_ms_ssim": L1MSSSIM,
    "pkd": PKD,
    "cwd": CWD,
    "mgd": lambda: MGD().eval(),  # in training each call has masks of its own
    "defeat_neck": DeFeatNeck,
    "defeat_backbone": DeFeatBackbone,
    "defeat_proposals": DeFeatProposals,
    "careg": ClassAwareRegression,
    "prediction": PredictionImitation,
    "sgfi": SGFI,
    "contrastive": lambda: Contrastive(queue=256, width=16),
    "crosskd": lambda: CrossKD(score_threshold=0.01),  # random heads give most sites a little more
}

TWO_STAGE = ("faster_rcnn_r18", "faster_rcnn_c4_r18", "cascade_rcnn_r18")
# Terms that compare a student with its teacher, and the detectors that each is tried on, as both.
STUDENT_TERMS: dict[str, tuple[str, ...]] = {
    "mimic": ("double", "yolov3_tiny"),
    **dict.fromkeys(
        ("feature_l1", "feature_l2", "feature_smooth_l1", "ssim", "ms_ssim", "l1_ms_ssim", "pkd", "cwd", "mgd"),
        ("double", "yolov3_tiny"),
    ),
    "defeat_neck": ("yolov3_tiny", "fcos_r18", "faster_rcnn_r18", "faster_rcnn_c4_r18"),
    "defeat_backbone": ("retinanet_r18", "faster_rcnn_r18"),
    "defeat_proposals": TWO_STAGE,
    "careg": TWO_STAGE,
    "prediction": TWO_STAGE,
    "sgfi": TWO_STAGE,
    "contrastive": TWO_STAGE,
    "crosskd": ("retinanet_r18", "fcos_r18"),
}
# Terms whose mean over processes is another than the joined batch's: they standardise maps over the batch.
OF_THE_BATCH = ("pkd",)
TWO_PROCESSES = tuple(term for term in STUDENT_TERMS if term not in OF_THE_BATCH)
# Terms whose value is another for a larger batch, since its boxes are told apart from more others.
TELLS_APART = ("contrastive",)


def tries() -> list[tuple[str, str]]:
    """(term, detector) for all that the generic tests of terms try."""
    return [(term, kind) for term in TERMS for kind in STUDENT_TERMS.get(term, ("double", "yolov3_tiny"))]


def need(name: str) -> None:
    """Skip the test, with the reason, where the file or package of a detector of the catalogue is missing."""
    case = DETECTORS[name]
    if case.needs is not None and not case.needs.is_file():
        pytest.skip(f"no file {case.needs.name} in the shared weights; set DETKD_SHARED")
    if case.package is not None and importlib.util.find_spec(case.package) is None:
        pytest.skip(f"no package {case.package}; pip install 'detkd[{case.package}]'")


def build(name: str, seed: int = 0) -> Any:
    """The detector of that name in eval mode: random weights, norms that have seen a batch and have an affine map of their own."""
    torch.manual_seed(seed)
    detector = DETECTORS[name].build()
    if hasattr(detector, "score_threshold"):
        detector.score_threshold = LOW["score_threshold"]
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        detector.train()(images_for(detector, 8, seed=seed + 100))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return detector.eval()


def images_for(detector: Any, count: int = 2, seed: int = 1) -> Tensor:
    """(count, 3, H, W) random images in [0, 1] of the detector's size."""
    return torch.rand(count, 3, *detector.spec.image_size, generator=torch.Generator().manual_seed(seed))


def target(*rows: tuple[float, float, float, float, int]) -> Target:
    """A target from rows x1, y1, x2, y2, label; of no rows, an image without objects."""
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([row[4] for row in rows], dtype=torch.int64)}


def loss_of(detector: Any, prediction: Any, targets: list[Target]) -> dict[str, Tensor]:
    """The loss with any sampling started afresh, so that two losses can be compared."""
    if hasattr(detector, "reseed"):
        detector.reseed(0)
    return detector.loss(prediction, targets)
