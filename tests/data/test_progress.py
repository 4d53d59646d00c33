from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from detkd.data.progress import ProgressReader, to_json
from detkd.data.store import StoreWriter
from detkd.errors import InputError

START = 1_000_000.0


def writer(root: Path, recipe: dict[str, Any]) -> StoreWriter:
    return StoreWriter(root, recipe, ["a"], (8, 8), teacher_sha256="0" * 64, seed=0)


def shard(store: StoreWriter, index: int, written: float, records: list[dict[str, Any]] | None = None, images: int = 4) -> None:
    targets: Any = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([0])}] * images
    store.write_shard(index, torch.zeros(images, 3, 8, 8, dtype=torch.uint8), targets, records)
    os.utime(store.root / "shards" / f"{index:06d}" / "shard.json", (START + written, START + written))


def test_counts_rate_and_time_to_go(tmp_path: Path) -> None:
    store = writer(tmp_path, {"n_images": 40})
    record = {"accepted": True, "attempt": 0}
    for index in range(5):
        shard(
            store,
            index,
            10.0 * index,
            [record | {"attempts": 2}, record, record | {"accepted": False}, record | {"attempt": 1}],
        )
    progress = ProgressReader(tmp_path).read()
    assert (progress.images, progress.n_images, progress.left, progress.shards, progress.complete) == (20, 40, 20, 5, False)
    assert progress.images_per_second == pytest.approx(0.4)
    assert progress.eta_seconds == pytest.approx(50)
    assert (progress.accepted, progress.made) == (15, 40)
    assert progress.line() == "20 of 40 images in 5 shards, 0.4 images/s, ETA 0:00:50, accepted 75%, 40 made"
    assert json.loads(to_json(progress))["left"] == 20


def test_a_pause_is_no_work(tmp_path: Path) -> None:
    store = writer(tmp_path, {"n_images": 40})
    for index, written in enumerate([0, 10, 5000, 5010, 5020, 5030, 5040]):
        shard(store, index, written)
    assert ProgressReader(tmp_path).read().images_per_second == pytest.approx(0.4)


def test_two_processes_that_finish_together(tmp_path: Path) -> None:
    store = writer(tmp_path, {"n_images": 100})
    for index in range(8):
        shard(store, index, 10.0 * (index // 2) + 0.1 * (index % 2))
    assert ProgressReader(tmp_path).read().images_per_second == pytest.approx(7 * 4 / 30.1)


def test_the_beginning_and_the_end(tmp_path: Path) -> None:
    store, reader = writer(tmp_path, {"n_images": 8}), ProgressReader(tmp_path)
    assert reader.read().line() == "0 of 8 images in 0 shards"
    shard(store, 0, 0.0)
    assert reader.read().images_per_second is None
    shard(store, 1, 2.0)
    store.finish(2)
    assert reader.read().line() == "8 of 8 images in 2 shards, 2 images/s, complete"


def test_a_damaged_shard_is_told(tmp_path: Path) -> None:
    store = writer(tmp_path, {})
    shard(store, 0, 0.0)
    (tmp_path / "shards" / "000000" / "shard.json").write_text("{")
    progress = ProgressReader(tmp_path).read()
    assert (progress.damaged, progress.images, progress.n_images) == (1, 0, None)


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the manifest of a store"):
        ProgressReader(tmp_path).read()
