from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detkd.data.coco import CocoDataset
from detkd.data.store import open_store
from detkd.detectors.checkpoint import fingerprint, load_checkpoint

Command = Callable[..., Any]
Files = Callable[[Path], dict[str, bytes]]


def test_results_have_the_documented_keys(images: Path, detectors: Path) -> None:
    results = json.loads((images / "results.json").read_text())
    assert {"teacher_ap50", "verifier_ap50", "images", "seconds", "images_per_second"} <= set(results)
    assert results["images"] == 6
    assert 0 <= results["teacher_ap50"] <= 1
    assert results["verifier_ap50"] is None
    assert results["images_per_second"] == pytest.approx(6 / results["seconds"])
    assert results["teacher_sha256"] == fingerprint(load_checkpoint(detectors / "teacher.safetensors"))


def test_the_set_opens_as_a_store_and_as_coco(images: Path) -> None:
    store = open_store(images, verify=True)
    assert len(store) == 6
    assert store.n_shards == 2
    assert store.seed == 0
    assert store.classes == ("circle", "square", "cross")
    assert store.image_size == (32, 32)
    dataset = CocoDataset(images, classes=store.classes, image_size=(32, 32), resize="stretch")
    assert len(dataset) == 6
    assert torch.equal(dataset[5]["image"], store.read_shard(1).images[1])
    target = dataset[5]["target"]
    assert target is not None
    assert len(target["boxes"]) == 1


def test_a_run_leaves_nothing_but_what_is_documented(images: Path) -> None:
    names = {p.name for p in images.iterdir()}
    assert names == {
        *("manifest.json", "instances.json", "shards", "config.yaml", "results.json"),
        *("data.yaml", "train.txt", "classes.names", "duplicates.json", "README.md", "gallery"),
    }


def test_the_same_command_again_changes_no_byte(
    images: Path, tmp_path: Path, command: Command, tiny: list[str], files_of: Files
) -> None:
    shutil.copytree(images, tmp_path / "set")
    before = files_of(tmp_path / "set")
    command("invert", *tiny, "out=set", cwd=tmp_path).ok()
    assert files_of(tmp_path / "set") == before


def test_an_interrupted_run_goes_on_and_ends_with_the_same_set(
    images: Path, tmp_path: Path, command: Command, tiny: list[str], files_of: Files
) -> None:
    shutil.copytree(images, tmp_path / "set")
    manifest = json.loads((images / "manifest.json").read_text())
    header = {k: v for k, v in manifest.items() if k not in ("images", "records", "rejected", "shards", "instances_sha256")}
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(header | {"complete": False}))
    (tmp_path / "set" / "instances.json").unlink()
    (tmp_path / "set" / "results.json").unlink()
    shutil.rmtree(tmp_path / "set" / "shards" / "000000")
    command("invert", *tiny, "out=set", cwd=tmp_path).ok()
    mine, theirs = files_of(tmp_path / "set"), files_of(images)
    for files in (mine, theirs):
        results = json.loads(files.pop("results.json"))
        assert results["images"] == 6
    assert mine == theirs


def test_another_seed_in_the_same_folder_is_refused(
    images: Path, tmp_path: Path, command: Command, tiny: list[str], files_of: Files
) -> None:
    shutil.copytree(images, tmp_path / "set")
    before = files_of(tmp_path / "set")
    message = command("invert", *tiny, "out=set", "seed=1", cwd=tmp_path).error()
    assert str(tmp_path / "set") in message
    assert "seed: 0 there, 1 here" in message
    assert len(message.strip().splitlines()) == 1
    assert files_of(tmp_path / "set") == before


def test_pictures_metrics_verifier_and_the_other_components(
    tmp_path: Path, command: Command, tiny: list[str], detectors: Path
) -> None:
    more = [
        "callbacks=invert",
        "callbacks.pictures.every=2",
        "logger=csv",
        "log_every=1",
        "trainer.log_every_n_steps=1",
        "image=pixels",
        "layout=boxes",
        "loss=[detection,bn_stats,tv,pixel_l2]",
        "loss.bn_stats.form=l2",
        "augmentation.cutout=null",
        "resolution=null",
        "iterations=null",
        "stages=[{resolution: 32, iterations: 2, optimizer: {_target_: torch.optim.Adam, lr: 0.1}},"
        "{resolution: [64, 32], iterations: 2, optimizer: {_target_: torch.optim.Adam, lr: 0.1}, weights: {tv: 0}}]",
        "verifier=checkpoint",
        f"verifier.path={detectors / 'wide.safetensors'}",
    ]
    command("invert", *tiny, *more, "out=set", cwd=tmp_path).ok()
    out = tmp_path / "set"
    assert open_store(out, verify=True).image_size == (64, 32)
    assert isinstance(json.loads((out / "results.json").read_text())["verifier_ap50"], float)
    header, *rows = (out / "metrics.csv").read_text().splitlines()
    assert {"loss/detection", "loss/bn_stats", "loss/tv", "loss/pixel_l2", "loss/total", "images/s"} <= set(header.split(","))
    assert len(rows) >= 8
    pictures = sorted((out / "pictures").glob("*.png"))
    assert [p.name for p in pictures[:2]] == ["batch0000_stage0_00002.png", "batch0000_stage1_00002.png"]
    with Image.open(pictures[0]) as first:
        assert first.size == (4 * (5 * 32 + 2) + 2, 5 * 32 + 4)


def test_the_built_in_teacher_is_the_default(tmp_path: Path, command: Command) -> None:
    quick = ["n_images=2", "batch_size=2", "iterations=2", "callbacks=none", "logger=none", "trainer.accelerator=cpu"]
    command("invert", *quick, "out=set", cwd=tmp_path).ok()
    assert len(open_store(tmp_path / "set")) == 2


def test_without_out_the_folder_is_a_dated_one_under_runs(tmp_path: Path, command: Command, tiny: list[str]) -> None:
    done = command("invert", *tiny, "iterations=1", cwd=tmp_path).ok()
    (folder,) = (tmp_path / "runs" / "invert").iterdir()
    assert open_store(folder)
    assert str(folder) in done.stdout
