from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.coco import CocoDataset
from detkd.runtime.scored_run import data_facts, read_scored_run, write_detections
from detkd.structures import Detection


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was told of its data relative to the folder ``first``."""
    root = tmp_path / "first" / "set"
    root.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(root / "a.png")
    names = [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}]
    boxes = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [4, 4, 16, 16]}]
    square = [{"id": 3, "name": "square"}]
    (root / "instances.json").write_text(json.dumps({"images": names, "annotations": boxes, "categories": square}))
    monkeypatch.chdir(tmp_path / "first")
    folder = tmp_path / "run"
    folder.mkdir()
    OmegaConf.save({"data": {"root": "set", "format": "folder"}}, folder / "config.yaml")
    dataset = CocoDataset(Path("set"), classes=("square",), image_size=(32, 32), resize="stretch")
    found: Detection = {"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.5])}
    written = write_detections(folder, [found], dataset, ("square",))
    assert written == hashlib.sha256((folder / "detections.json").read_bytes()).hexdigest()
    assert json.loads((folder / "detections.json").read_text()) == [
        {"image_id": 7, "category_id": 3, "bbox": [4, 4, 16, 16], "score": 0.5}
    ]
    results = {"images": 1, "per_class": {"square": 1.0}, "detector_sha256": "1" * 64} | data_facts(dataset, ("square",))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_data_is_found_from_another_folder(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "second" / "set").mkdir(parents=True)  # what the config says means another folder there
    monkeypatch.chdir(tmp_path / "second")
    read = read_scored_run("../run")
    assert read.root == read.dataset.root == tmp_path / "first" / "set"
    assert len(read.truths[0]["labels"]) == len(read.detections[0]["labels"]) == 1
    assert read.hashes["detector_sha256"] == "1" * 64
    assert read.hashes["detections_sha256"] == hashlib.sha256((run / "detections.json").read_bytes()).hexdigest()
    assert all(read.hashes.values())


def test_data_that_moved_is_where_the_config_or_the_command_line_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "first").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert read_scored_run(run).root == tmp_path / "moved" / "set"
    monkeypatch.chdir(tmp_path)
    assert read_scored_run(run, root="moved/set").dataset.root == Path("moved/set")
