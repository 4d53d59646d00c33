"""Average precision as COCO defines it, of any detector on any annotated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from detkd.boxes import area_xyxy, xyxy_to_xywh
from detkd.data.dataset import Sample
from detkd.data.loading import Collating, Loader, Reporting
from detkd.detectors.modes import looking
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.structures import Detection, Target

# numpy's float64 grids, as in pycocotools; torchmetrics' own come from float32, which moves matches and recalls that lie on a grid point
IOU_THRESHOLDS: list[float] = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS: list[float] = np.linspace(0.0, 1.0, 101).tolist()
MAX_DETECTIONS = [1, 10, 100]
_NO_RANGE = 1e12  # square pixels; beyond the widest of pycocotools' ranges of area, which ends at 1e10


@dataclass(frozen=True)
class Scores:
    """Average precision in [0, 1]; None where no box could have been found (-1 in pycocotools).

    ap: mean over classes and IoU .50:.05:.95. ap50, ap75: at one IoU. ap_small, ap_medium, ap_large: boxes under 32^2, 32^2 to 96^2, over
    96^2 square pixels of the original image. images: how many were scored. per_class: ap by class name, None for classes without a box.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    images: int
    per_class: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields under their own names, as json-able values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) as text: the six scores, the number of images, then the classes."""
        values: dict[str, Any] = {k: v for k, v in self.to_dict().items() if k != "per_class"}
        rows = [(name, _text(value)) for name, value in values.items()]
        return rows + [(f"ap {name}", _text(value)) for name, value in self.per_class.items()]

    def markdown(self) -> str:
        """The scores in one table row, and where there are classes one row each below."""
        values = {k: _text(v) for k, v in self.to_dict().items() if k != "per_class"}
        lines = [_line(values), _line(["---"] * len(values)), _line(values.values())]
        if self.per_class:
            lines += ["", _line(["class", "ap"]), _line(["---", "---"])]
            lines += [_line([name.replace("|", r"\|"), _text(value)]) for name, value in self.per_class.items()]
        return "\n".join(lines) + "\n"

    def table(self, title: str = "") -> Table:
        """The same for the terminal."""
        table = Table("score", "value", title=title or None)
        for name, value in self.rows():
            table.add_row(name, value)
        return table


class Samples(Protocol):
    """A data set that can be indexed: a DetectionDataset, a part of one, or one whose images are changed on the way."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def detect(
    detector: Detector,
    dataset: Samples,
    batch_size: int = 8,
    device: str = "cpu",
    num_workers: int = 0,
) -> list[Detection]:
    """Run a detector over a data set.

    Args:
        detector: moved to ``device`` and left there; run in eval mode, then given back its own.
        dataset: images already at the detector's size, with the placement that says how they got there.

    Returns:
        one an image, in order, on the CPU: boxes xyxy in pixels of the *original* image, clipped to it; labels of the detector.

    Raises InputError for a data set without images, and as the data set does when an image is read, whatever ``num_workers``.
    """
    if len(dataset) == 0:
        raise InputError("data: expected at least one image to run the detector on, found none")
    detector.to(device)
    loader = Loader(Reporting(dataset), batch_size=batch_size, num_workers=num_workers, collate_fn=Collating(_as_list))
    found: list[Detection] = []
    with looking(detector):
        for samples in loader:
            images = torch.stack([sample["image"] for sample in samples]).to(device).float() / 255  # (B, 3, H, W)
            for sample, detection in zip(samples, detector.decode(detector(images))):
                boxes = sample["placement"].undo_xyxy(detection["boxes"].float().cpu(), sample["original_size"])
                found.append({"boxes": boxes, "labels": detection["labels"].cpu(), "scores": detection["scores"].float().cpu()})
    return found


def detect_images(detector: Detector, images: Sequence[Tensor], batch_size: int = 32, device: str = "cpu") -> list[Detection]:
    """Run a detector over uint8 images (3, H, W) of one size as they are: boxes xyxy in their pixels, on the CPU."""
    detector.to(device)
    found: list[Detection] = []
    with looking(detector):
        for start in range(0, len(images), batch_size):
            batch = torch.stack(list(images[start : start + batch_size])).to(device).float() / 255  # (B, 3, H, W)
            for d in detector.decode(detector(batch)):
                found.append(
                    {"boxes": d["boxes"].float().cpu(), "labels": d["labels"].cpu(), "scores": d["scores"].float().cpu()}
                )
    return found


def score(detections: Sequence[Detection], ground_truths: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Scores:
    """Score detections by COCO's rules: at most 100 an image and class, crowds neither hit nor miss (torchmetrics over pycocotools).

    A box to ignore is neither hit nor miss either: not to find it costs nothing, and what overlaps it by the IoU asked for, and no box
    that counts, is no false alarm, however often (Pascal VOC's rule for difficult objects; COCO's for crowds has another overlap).

    Args:
        detections, ground_truths: one an image, in the same order. Boxes xyxy in original pixels; ground truth may have iscrowd (n,),
            ignore (n,) and area (n,), else 0, 0 and the box's area.
        classes: what labels mean, on both sides.

    Returns:
        Scores, equal to those of pycocotools called directly. A class without a box in the whole set is left out of every mean: detections
        of it are dropped, so a COCO detector on a set of three classes is scored on these three, with no false alarms for the 77 others.
        Without any box all scores are None.

    Raises InputError for no images or a label outside ``classes``; ValueError where the two lists differ in length.
    """
    if len(detections) != len(ground_truths):
        raise ValueError(
            f"expected one ground truth an image, got {len(detections)} detections and {len(ground_truths)} ground truths"
        )
    if not ground_truths:
        raise InputError("data: expected at least one image to score, found none")
    present = _present(ground_truths)
    if present and not 0 <= min(present) <= max(present) < len(classes):
        raise InputError(
            f"data: expected labels from 0 to {len(classes) - 1} ({len(classes)} classes), found {sorted(present)}"
        )
    if not present:
        return Scores(None, None, None, None, None, None, len(ground_truths), dict.fromkeys(classes))

    metric = _metric(IOU_THRESHOLDS, class_metrics=True)
    metric.update([_only(d, present) for d in detections], [_truth(g, d) for g, d in zip(ground_truths, detections)])
    result = metric.compute()
    by_label = dict(zip(result["classes"].reshape(-1).tolist(), result["map_per_class"].reshape(-1).tolist()))
    return Scores(
        ap=_value(result["map"]),
        ap50=_value(result["map_50"]),
        ap75=_value(result["map_75"]),
        ap_small=_value(result["map_small"]),
        ap_medium=_value(result["map_medium"]),
        ap_large=_value(result["map_large"]),
        images=len(ground_truths),
        per_class={name: _value(by_label.get(label, -1.0)) for label, name in enumerate(classes)},
    )


@dataclass(frozen=True)
class Ap50:
    """Average precision at IoU .50, in [0, 1].

    value: mean over the classes that have a box. small, medium, large: of boxes under 32^2, 32^2 to 96^2, over 96^2 square pixels; None
    without any. per_class: by name, of the classes that have a box.
    """

    value: float
    small: float | None
    medium: float | None
    large: float | None
    per_class: dict[str, float]


def ap50(detections: Sequence[Detection], targets: Sequence[Target], classes: Sequence[str] | None = None) -> Ap50:
    """Average precision at IoU .50: the score of synthetic images.

    Both one an image, xyxy in the same pixels. classes: what labels mean; without them classes go by number. Raises InputError where
    no image has a box, which leaves it undefined.
    """
    if len(detections) != len(targets):
        raise ValueError(f"expected one target an image, got {len(detections)} detections and {len(targets)} targets")
    present = _present(targets)
    if not present:
        raise InputError(f"AP50: expected at least one target box in {len(targets)} images, found none")
    metric = _metric([0.5], class_metrics=True)
    metric.update([_only(d, present) for d in detections], [_truth(t, d) for t, d in zip(targets, detections)])
    result = metric.compute()
    by_label = zip(result["classes"].reshape(-1).tolist(), result["map_per_class"].reshape(-1).tolist())
    return Ap50(
        value=float(result["map_50"]),
        small=_value(result["map_small"]),
        medium=_value(result["map_medium"]),
        large=_value(result["map_large"]),
        per_class={str(label) if classes is None else classes[label]: float(value) for label, value in by_label},
    )


def coco_detections(
    detections: Sequence[Detection], image_ids: Sequence[int], category_ids: Mapping[int, int] | Sequence[int]
) -> list[dict[str, Any]]:
    """Detections as COCO's results format, for a json or a test server.

    Args:
        detections: one an image, xyxy in original pixels. image_ids: the json's, one an image.
        category_ids: the json's, by label; detections of labels that a mapping lacks have no counterpart and are left out.

    Returns:
        dicts of image_id, category_id, bbox (x, y, width, height; 1/1000 pixel) and score (6 digits).
    """
    if len(detections) != len(image_ids):
        raise ValueError(f"expected one image id for each of {len(detections)} images, got {len(image_ids)}")
    category_of = dict(category_ids) if isinstance(category_ids, Mapping) else dict(enumerate(category_ids))
    results: list[dict[str, Any]] = []
    for image_id, detection in zip(image_ids, detections):
        boxes_xywh = xyxy_to_xywh(detection["boxes"]).tolist()
        for box, label, value in zip(boxes_xywh, detection["labels"].tolist(), detection["scores"].tolist()):
            if label in category_of:
                bbox = [round(v, 3) for v in box]
                results.append(
                    {"image_id": int(image_id), "category_id": category_of[label], "bbox": bbox, "score": round(value, 6)}
                )
    return results


def _as_list(samples: list[Sample]) -> list[Sample]:
    return samples


def _metric(iou_thresholds: list[float], class_metrics: bool) -> MeanAveragePrecision:
    metric = MeanAveragePrecision(
        box_format="xyxy",
        iou_type="bbox",
        iou_thresholds=iou_thresholds,
        rec_thresholds=RECALL_THRESHOLDS,
        max_detection_thresholds=MAX_DETECTIONS,
        class_metrics=class_metrics,
        backend="pycocotools",
        sync_on_compute=False,  # one process scores all images while the others may be gone
    )
    metric.warn_on_many_detections = False  # COCO's limit is by image and class, and is meant
    return metric


def _present(targets: Sequence[Mapping[str, Any]]) -> set[int]:
    return {int(label) for target in targets for label in target["labels"][~_ignored(target)].tolist()}


def _ignored(target: Mapping[str, Any]) -> Tensor:
    ignore: Tensor = target.get("ignore", torch.zeros(len(target["labels"]), dtype=torch.bool, device=target["labels"].device))
    return ignore.bool()


def _only(detection: Detection, labels: set[int]) -> dict[str, Tensor]:
    keep = torch.isin(detection["labels"].cpu(), torch.tensor(sorted(labels)))
    fields: dict[str, Tensor] = {"boxes": detection["boxes"], "labels": detection["labels"], "scores": detection["scores"]}
    return {name: value.detach().cpu()[keep] for name, value in fields.items()}


def _truth(target: Mapping[str, Any], detection: Detection) -> dict[str, Tensor]:
    """Ground truth as torchmetrics takes it."""
    truth = {name: target[name].detach().cpu() for name in ("boxes", "labels", "area") if name in target}
    if "iscrowd" in target:
        truth["iscrowd"] = target["iscrowd"].cpu().long()
    if "ignore" not in target or not bool(target["ignore"].any()):
        return truth
    ignore = target["ignore"].cpu()
    truth.setdefault("area", area_xyxy(truth["boxes"]))
    # pycocotools overwrites a flag "ignore" by iscrowd, but ignores a box whose area is in no range; and each box takes one detection,
    # so there are as many of it as detections that may overlap it
    truth["area"] = torch.where(ignore, _NO_RANGE, truth["area"].double())
    overlaps = box_iou(truth["boxes"].float(), detection["boxes"].detach().cpu().float()) >= 0.5  # (n, m)
    alike = truth["labels"][:, None] == detection["labels"].cpu()[None]
    copies = torch.where(ignore, (overlaps & alike).sum(1), 1)
    return {name: value.repeat_interleave(copies, dim=0) for name, value in truth.items()}


def _value(value: Tensor | float) -> float | None:
    return None if float(value) < 0 else float(value)


def _text(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
