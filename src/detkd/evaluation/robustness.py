"""How much of its AP a detector keeps on corrupted images (Michaelis et al., Benchmarking Robustness in Object Detection, 2019)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from detkd.data.dataset import DetectionDataset, Sample
from detkd.data.letterbox import place
from detkd.evaluation.coco import Scores
from detkd.evaluation.corruptions import check, corrupt

Metric = Literal["ap", "ap50"]
COLUMNS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class CorruptedDataset(Dataset[Sample]):
    """A data set whose images are corrupted before they are brought to the network's size; without targets.

    What is drawn for an image is a function of (seed, corruption, severity, its id): order and workers do not matter. Raises InputError for
    an unknown corruption or severity, and as the data set does when an image is read.
    """

    def __init__(self, dataset: DetectionDataset, corruption: str, severity: int, seed: int = 0) -> None:
        check(corruption, severity)
        self.dataset, self.corruption, self.severity, self.seed = dataset, corruption, severity, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, image_id = self.dataset.original(index), self.dataset.image_id(index)
        corrupted = corrupt(np.asarray(image), self.corruption, self.severity, seed=self.seed, image_id=image_id)
        placed, placement = place(Image.fromarray(corrupted), self.dataset.image_size, self.dataset.resize)
        size = (image.height, image.width)
        return Sample(image=placed, target=None, image_id=image_id, original_size=size, placement=placement)


@dataclass(frozen=True)
class Robustness:
    """Scores of one detector on clean and on corrupted images.

    clean: of the images as they are; its ap and ap50 are numbers. corrupted: by corruption, then by severity; at least one, the same
    severities for all.
    """

    clean: Scores
    corrupted: Mapping[str, Mapping[int, Scores]]

    @property
    def severities(self) -> tuple[int, ...]:
        return tuple(next(iter(self.corrupted.values())))

    def under(self, corruption: str, metric: Metric = "ap") -> float:
        """The mean over severities."""
        return _mean([_number(scores, metric) for scores in self.corrupted[corruption].values()])

    def mpc(self, metric: Metric = "ap") -> float:
        """Mean performance under corruption: the mean over corruptions of the mean over severities (equation 1)."""
        return _mean([self.under(corruption, metric) for corruption in self.corrupted])

    def rpc(self, metric: Metric = "ap") -> float | None:
        """Relative performance under corruption: mPC over the clean score (equation 2); None where that is 0."""
        clean = _number(self.clean, metric)
        return self.mpc(metric) / clean if clean else None

    def to_dict(self) -> dict[str, Any]:
        """The clean scores, mPC and rPC of AP and AP50, and all under ``corruptions``, as json-able values."""
        clean = {key: getattr(self.clean, key) for key in (*COLUMNS, "images")}
        corruptions = {
            name: {"ap": self.under(name), "ap50": self.under(name, "ap50")}
            | {"severities": {str(s): {key: getattr(scores, key) for key in COLUMNS} for s, scores in by_severity.items()}}
            for name, by_severity in self.corrupted.items()
        }
        means = {"mpc": self.mpc(), "mpc50": self.mpc("ap50"), "rpc": self.rpc(), "rpc50": self.rpc("ap50")}
        return clean | means | {"corruptions": corruptions}

    def csv(self) -> str:
        """One line a run, the clean one first, as severity 0; a score that is not defined is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["corruption", "severity", *COLUMNS])
        writer.writerow(["clean", 0, *(getattr(self.clean, key) for key in COLUMNS)])
        for name, by_severity in self.corrupted.items():
            writer.writerows([name, s, *(getattr(scores, key) for key in COLUMNS)] for s, scores in by_severity.items())
        return out.getvalue()

    def markdown(self) -> str:
        """A table of mPC and rPC, and one a metric of the corruptions by severity."""
        metrics: tuple[tuple[str, Metric], ...] = (("AP", "ap"), ("AP50", "ap50"))
        lines = [_line(["", "clean", "mPC", "rPC"]), _line(["---"] * 4)]
        for title, metric in metrics:
            values = [f"{_number(self.clean, metric):.3f}", f"{self.mpc(metric):.3f}", _percent(self.rpc(metric))]
            lines.append(_line([title, *values]))
        for title, metric in metrics:
            head = [title, *(f"severity {s}" for s in self.severities), "mean"]
            lines += ["", _line(head), _line(["---"] * len(head))]
            for name, by_severity in self.corrupted.items():
                scored = [_number(scores, metric) for scores in by_severity.values()]
                lines.append(_line([name, *(f"{value:.3f}" for value in (*scored, _mean(scored)))]))
        return "\n".join(lines) + "\n"


def _number(scores: Scores, metric: Metric) -> float:
    value: float | None = getattr(scores, metric)
    if value is None:
        raise ValueError(f"expected scores of images with boxes, got {metric} None")
    return value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
