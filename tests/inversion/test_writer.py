from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from detkd.data.store import StoreWriter, open_store
from detkd.errors import InputError
from detkd.inversion.batches import Finished
from detkd.inversion.image import quantise
from detkd.inversion.writer import StoreBatches
from detkd.structures import Target


def open_writer(root: Path) -> StoreWriter:
    return StoreWriter(root, {"n_images": 8}, ["a"], (8, 8), teacher_sha256="0" * 64, seed=0)


def finished(index: int) -> Finished:
    targets: list[Target] = [{"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([0])}] * 2
    images = torch.full((2, 3, 8, 8), index, dtype=torch.uint8)
    return Finished(index, images, targets, [{}, {}], {"iterations": [1.0], "objects": [1.0], "loss": [0.5]})


def make_all(batches: StoreBatches, pause: float = 0.0) -> list[int]:
    made = []
    while (index := batches.claim()) is not None:
        time.sleep(pause)
        made.append(index)
        batches.deliver(finished(index))
    batches.close()
    return made


def test_quantise_rounds_and_clamps() -> None:
    images = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2]).view(1, 1, 2, 3)
    assert quantise(images).flatten().tolist() == [0, 0, 0, 1, 255, 255]
    assert quantise(images).dtype == torch.uint8
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(quantise(levels.float() / 255), levels)


def test_one_process_makes_all_batches_in_order_and_leaves_no_claim(tmp_path: Path) -> None:
    writer, told = open_writer(tmp_path), []
    assert make_all(StoreBatches(writer, 4, written=told.append)) == [0, 1, 2, 3]
    assert told == [0, 1, 2, 3]
    assert not (tmp_path / ".claims").exists()
    writer.finish(4)
    assert torch.equal(open_store(tmp_path, verify=True).read_shard(2).images, finished(2).images)
    assert make_all(StoreBatches(writer, 4)) == []


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.write_shard(1, finished(1).images, finished(1).targets)
    assert make_all(StoreBatches(writer, 3)) == [0, 2]


def test_each_begins_at_its_turn_and_all_is_made_once(tmp_path: Path) -> None:
    made: dict[int, list[int]] = {}

    def work(turn: int) -> None:
        made[turn] = make_all(StoreBatches(open_writer(tmp_path), 8, turn=turn, turns=2, wait=0.01), pause=0.05)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(made[0] + made[1]) == list(range(8))
    assert made[0][:2] == [0, 2]
    assert made[1][:2] == [1, 3]


def test_the_bank_is_finished_before_the_rest_begins(tmp_path: Path) -> None:
    first, second = StoreBatches(open_writer(tmp_path), 4, first=2), StoreBatches(open_writer(tmp_path), 4, first=2, wait=0.01)
    assert first.claim() == 0
    assert second.claim() == 1
    answer: list[int | None] = []
    waiting = threading.Thread(target=lambda: answer.append(second.claim()))
    second.deliver(finished(1))
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive()  # batch 0 is not there yet
    first.deliver(finished(0))
    waiting.join(timeout=30)
    assert answer == [2]
    first.close()
    second.close()


def test_what_a_dead_process_left_half_written_is_cleared_by_who_takes_over(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    leftover = tmp_path / "shards" / ".000000.abc.tmp"
    leftover.mkdir()
    (leftover / "000000.png").write_bytes(b"half")
    batches = StoreBatches(writer, 1)
    assert batches.claim() == 0
    assert not leftover.exists()
    batches.close()


def test_a_batch_that_cannot_be_written_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(tmp_path)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoreWriter, "write_shard", full)
    batches = StoreBatches(writer, 2)
    index = batches.claim()
    assert index == 0
    batches.deliver(finished(index))
    with pytest.raises(OSError, match="No space left"):
        make_all(batches)
    batches.close()
    assert not (tmp_path / ".claims").exists()
    assert writer.finished() == set()


def test_another_content_for_a_shard_is_an_error(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.write_shard(0, finished(0).images, finished(0).targets)
    with pytest.raises(InputError, match="expected the content that its recipe makes"):
        writer.write_shard(0, finished(1).images, finished(1).targets)
