from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.coco import CocoDataset
from detkd.errors import InputError
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
    hashes = {"detector_sha256": "1" * 64, "detections_sha256": written}
    results = {"images": 1, "per_class": {"square": 1.0}} | hashes | data_facts(dataset, ("square",))
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


@pytest.mark.parametrize("root", [None, "copy"])
def test_boxes_that_were_changed_after_the_run(run: Path, tmp_path: Path, root: str | None) -> None:
    shutil.copytree(tmp_path / "first" / "set", tmp_path / "first" / "copy")
    read_scored_run(run, root="copy")
    path = tmp_path / "first" / (root or "set") / "instances.json"
    path.write_text(path.read_text().replace("[4, 4, 16, 16]", "[5, 4, 16, 16]"))
    message = (
        f"^{path.parent}: expected the boxes that .* found others .scored_sha256 is not that of {run}/results.json.*evaluate"
    )
    with pytest.raises(InputError, match=message):
        read_scored_run(run, root=root)


def test_images_that_were_changed_after_the_run(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "first" / "set" / "a.png", compress_level=0)
    with pytest.raises(InputError, match=r"first/set: expected the images that .* found others \(images_sha256 is not that of"):
        read_scored_run(run)


def test_detections_that_were_changed_after_the_run(run: Path) -> None:
    path = run / "detections.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(
        InputError, match=r"detections.json: expected the detections that .* found others \(detections_sha256 is"
    ):
        read_scored_run(run)


def test_what_a_run_did_not_record_is_not_known(run: Path) -> None:
    path = run / "results.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("_sha256")}))
    hashes = read_scored_run(run).hashes
    assert {key for key, value in hashes.items() if value is None} == {"detector_sha256", "scored_sha256", "images_sha256"}
