from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from omegaconf import OmegaConf

from detkd.data.scenes import write_coco
from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.runtime.publish import publish, publish_student, student_picture


class Wandb(WandbLogger):
    """Weights & Biases without a run: remembers what it is given."""

    def __init__(self) -> None:
        self.tables: list[tuple[str, Any]] = []
        self.artifacts: list[Any] = []
        self.pictures: list[str] = []
        self.id = "abc"

    @property
    def experiment(self) -> Any:
        return self

    def log_table(self, key: str, columns: Any = None, data: Any = None, *arguments: Any, **more: Any) -> None:
        self.tables.append((key, data))

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.pictures.append(key)


def test_numbers_and_the_report_are_logged(tmp_path: Path) -> None:
    results = {"ap50": 0.5, "steps": 4, "ap": None, "student": "student.safetensors", "per_class": {"a": 1.0}}
    OmegaConf.save(OmegaConf.create({"student": {}}), tmp_path / "config.yaml")
    (tmp_path / "results.json").write_text(json.dumps(results))
    online = Wandb()
    publish([CSVLogger(str(tmp_path)), online], tmp_path, results)
    assert online.tables == [("results", [["ap50", 0.5], ["steps", 4.0]])]
    (artifact,) = online.artifacts
    assert (artifact.name, artifact.type) == ("report-abc", "report")
    assert set(artifact.manifest.entries) == {"report.html", "report.csv", "report.json", "report.md"}
    assert (tmp_path / "report" / "report.html").is_file()


def test_without_weights_and_biases_nothing_is_written(tmp_path: Path) -> None:
    publish([CSVLogger(str(tmp_path))], tmp_path / "run", {"ap50": 0.5})
    assert not (tmp_path / "run").exists()


def test_a_picture_of_what_the_student_finds(tmp_path: Path) -> None:
    write_coco(tmp_path / "val", 3, 0)
    names = [c["name"] for c in json.loads((tmp_path / "val" / "instances.json").read_text())["categories"]]
    anchors = [[6, 6], [9, 9], [12, 12], [20, 20], [28, 28], [40, 40]]
    student = yolov3_tiny(tuple(names), (32, 32), "stretch", 0.0625, anchors)
    cfg = OmegaConf.create({"val": {"root": str(tmp_path / "val"), "format": "folder", "annotations": None, "split": None}})
    picture = student_picture(cfg, student)
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    assert picture.shape[2] > picture.shape[1]  # three in a row
    online = Wandb()
    publish_student([online], cfg, student)
    assert online.pictures == ["student"]
    cfg.val.root = None
    publish_student([online], cfg, student)
    assert online.pictures == ["student"]
