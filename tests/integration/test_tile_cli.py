"""python -m detkd.tile as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkd.data.coco import CocoDataset
from detkd.data.store import find_latest_store, open_store

Command = Callable[..., Any]
Files = Callable[[Path], dict[str, bytes]]
SMALL = ["n_images=7", "shard_size=3", "image_size=64", "counts=[2,4]", "seed=3"]


def test_a_store_becomes_a_tiled_store_of_the_same_teacher(command: Command, images: Path, tmp_path: Path) -> None:
    done = command("tile", *SMALL, f"data.root={images}", "out=tiled", cwd=tmp_path).ok()
    source, store = open_store(images), open_store(tmp_path / "tiled", verify=True)
    assert (store.teacher_sha256, store.classes) == (source.teacher_sha256, source.classes)
    assert (len(store), store.n_shards, store.image_size, store.seed) == (7, 3, (64, 64), 3)
    assert find_latest_store(tmp_path, source.teacher_sha256) == tmp_path / "tiled"
    assert store.recipe["source"]["recipe"] == source.recipe
    results = json.loads((tmp_path / "tiled/results.json").read_text())
    objects = [len(target["labels"]) for i in range(3) for target in store.read_shard(i).targets]
    assert objects == [record["objects"] for record in store.records]
    assert all(2 <= len(record["sources"]) <= 4 for record in store.records)
    assert results["objects_before"] == 1
    assert results["objects_after"] == pytest.approx(sum(objects) / 7, abs=1e-4)
    assert f"objects an image: 1.00 before, {sum(objects) / 7:.2f} after" in done.stdout
    dataset = CocoDataset(tmp_path / "tiled", image_size=(64, 64), resize="stretch")
    assert len(dataset) == 7
    assert (tmp_path / "tiled/config.yaml").is_file()


def test_a_student_learns_from_tilings_on_disk_and_on_the_fly(
    command: Command, images: Path, tiny_distill: list[str], tmp_path: Path
) -> None:
    command("tile", *SMALL, f"data.root={images}", "out=runs/tiled", cwd=tmp_path).ok()
    command("distill", *tiny_distill, "out=student", cwd=tmp_path).ok()  # takes the latest set of its teacher
    assert "root: runs/tiled\n" in (tmp_path / "student/config.yaml").read_text()
    command("distill", *tiny_distill, f"data.root={images}", "augmentation=tile", "out=other", cwd=tmp_path).ok()
    assert json.loads((tmp_path / "other/results.json").read_text())["steps"] == 4


def test_the_same_line_again_changes_nothing_and_another_is_refused(
    command: Command, images: Path, tmp_path: Path, files_of: Files
) -> None:
    line = [*SMALL, f"data.root={images}", "out=tiled"]
    command("tile", *line, cwd=tmp_path).ok()
    before = files_of(tmp_path)
    assert "0 images in" in command("tile", *line, cwd=tmp_path).ok().stdout
    assert files_of(tmp_path) == before
    message = command("tile", *line, "seed=4", cwd=tmp_path).error()
    assert "it differs in seed: 3 there, 4 here" in message
    assert files_of(tmp_path) == before


@pytest.mark.slow  # a Python of its own
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    command: Command, images: Path, tmp_path: Path, files_of: Files
) -> None:
    line = ["n_images=30", "shard_size=2", "image_size=96", "counts=[1,25]", f"data.root={images}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(
        [sys.executable, "-m", "detkd.tile", *line, "out=killed"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed/shards/000001").exists() and time.monotonic() < deadline and killed.poll() is None:
            time.sleep(0.002)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert (tmp_path / "killed/shards/000001").exists()
    command("tile", *line, "out=killed", cwd=tmp_path).ok()
    command("tile", *line, "out=whole", cwd=tmp_path).ok()
    there, expected = files_of(tmp_path / "killed"), files_of(tmp_path / "whole")
    for files in (there, expected):
        del files["config.yaml"]  # says where
        results = json.loads(files.pop("results.json"))
        assert results.pop("command").startswith("python -m detkd.tile ")  # says where, too
        files["results.json"] = json.dumps(results).encode()
    assert there == expected


def test_a_folder_of_real_images(command: Command, shared: Path, tmp_path: Path) -> None:
    root = shared / "data/voc100"
    command("tile", "n_images=6", "image_size=[96,128]", f"data.root={root}", "out=tiled", cwd=tmp_path).ok()
    store = open_store(tmp_path / "tiled", verify=True)
    assert store.teacher_sha256 == ""
    results = json.loads((tmp_path / "tiled/results.json").read_text())
    assert results["objects_before"] == pytest.approx(2.73)
    assert results["source_images"] == 100


def test_mistakes_leave_no_file(command: Command, images: Path, tmp_path: Path, files_of: Files) -> None:
    for arguments, message in (
        ([], "data.root: expected a folder of images with boxes, like data.root=DIR, found none"),
        (["data.root=gone"], "gone: expected a folder of images, found nothing"),
        ([f"data.root={images}", "n_images=0"], "n_images: expected a whole number from 1, got 0"),
        ([f"data.root={images}", "counts={30:1}"], "counts: expected counts of at most 25, got 30"),
        ([f"data.root={images}", "image_size=16"], "image_size: expected at least 32 pixels a side, got [16, 16]"),
        (
            [f"data.root={images}", "data.classes=[circle]"],
            "found also ['cross', 'square']; on_unknown=drop leaves their boxes out",
        ),
    ):
        assert message in command("tile", *arguments, "out=out", cwd=tmp_path).error()
    assert files_of(tmp_path) == {}
