"""Attempts, sampling, warm start, and what a run leaves on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detkd_tests_inversion_runs import fit, make, same, stage  # put there by conftest.py
from PIL import Image
from torch import Tensor

from detkd.data.store import StoreWriter
from detkd.errors import InputError
from detkd.inversion.batches import MemoryBatches
from detkd.inversion.false_positives import FalsePositives
from detkd.inversion.pictures import PictureCallback
from detkd.inversion.quality import Acceptance
from detkd.inversion.warm_start import WarmStart
from detkd.inversion.writer import StoreBatches


class Some(MemoryBatches):
    """These batches, in this order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__(0)
        self.order = list(order)

    def claim(self) -> int | None:
        return self.order.pop(0) if self.order else None


@pytest.fixture
def writer(tmp_path: Path, teacher: Any) -> Callable[[], StoreWriter]:
    return lambda: StoreWriter(tmp_path / "set", {"a": 1}, teacher.spec.classes, (32, 32), teacher_sha256="0" * 64, seed=0)


def test_a_run_writes_the_set_and_pictures(tmp_path: Path, teacher: Any, writer: Callable[[], StoreWriter]) -> None:
    store = writer()
    batches = StoreBatches(store, 3)
    module = make(teacher, batches=batches)
    pictures = PictureCallback(tmp_path / "pictures", every=4, batches=1, side=16)
    kept = fit(module, pictures).finished
    batches.close()
    opened = store.finish(3)
    assert len(opened) == 5
    assert opened.n_shards == 3
    for index, finished in kept.items():
        shard = opened.read_shard(index)
        assert torch.equal(shard.images, finished.images)
        for mine, theirs in zip(shard.targets, finished.targets, strict=True):
            torch.testing.assert_close(mine["boxes"], theirs["boxes"])
        assert shard.records == finished.records
        assert set(shard.records[0]) == {
            *("teacher_score", "teacher_iou", "agreement"),
            *("loss", "objects_start", "attempt", "attempts", "accepted"),
        }
    names = sorted(p.name for p in (tmp_path / "pictures").glob("*.png"))
    assert names == ["batch0000_stage0_00004.png", "batch0000_stage0_00006.png"]
    with Image.open(tmp_path / "pictures" / names[0]) as picture:
        assert picture.size == (2 * (160 + 2) + 2, 160 + 4)
    films = sorted(p.name for p in (tmp_path / "pictures" / "steps" / "000000").iterdir())
    assert films == ["000000.png", "000001.png"]
    with Image.open(tmp_path / "pictures" / "steps" / "000000" / films[0]) as film:
        assert film.size == (2 * 16, 16)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, teacher: Any, writer: Callable[[], StoreWriter]) -> None:
    whole = fit(make(teacher)).finished
    store = writer()
    store.write_shard(0, whole[0].images, whole[0].targets, whole[0].records, whole[0].trace)
    batches = StoreBatches(store, 3)
    assert sorted(fit(make(teacher, batches=batches)).finished) == [1, 2]
    batches.close()
    opened = store.finish(3)
    assert all(torch.equal(opened.read_shard(i).images, whole[i].images) for i in range(3))


def test_rejected_images_are_made_again_with_other_boxes_and_noise(teacher: Any) -> None:
    teacher.score_threshold = 0.0
    plain = fit(make(teacher)).finished[0]
    scores = sorted(record["teacher_iou"] for record in plain.records)
    assert scores[0] < scores[1]  # a threshold that one of the two images of the batch reaches
    accept = Acceptance(teacher_iou=scores[1], attempts=3)
    kept = fit(make(teacher, accept=accept))
    finished = kept.finished[0]
    assert len(kept.losses) > 3 * 6
    accepted = [r for r in finished.records if r["accepted"]]
    assert accepted
    assert all(r["teacher_iou"] >= scores[1] for r in accepted)
    assert max(r["attempt"] for r in finished.records) <= 2
    first = next(i for i, r in enumerate(plain.records) if r["teacher_iou"] == scores[1])
    assert any(torch.equal(image, plain.images[first]) for image in finished.images)  # what was accepted at once stays
    assert all(same(a, b) for a, b in zip(kept.finished.values(), fit(make(teacher, accept=accept)).finished.values()))


def test_attempts_end_when_all_are_accepted(teacher: Any) -> None:
    assert len(fit(make(teacher, accept=Acceptance(attempts=3))).losses) == 3 * 6


def test_the_teacher_adds_targets_in_the_first_stage_alone(teacher: Any) -> None:
    teacher.score_threshold = 0.0
    sampling = FalsePositives(every=2, start=0.6, score=0.0, iou=0.35, area=(0.0, 1.0), most=3)
    plain = fit(make(teacher, [stage(32), stage(48)])).finished[0]
    added = fit(make(teacher, [stage(32), stage(48)], sampling=sampling)).finished[0]
    assert [r["objects_start"] for r in added.records] == [1, 1]
    assert [len(t["labels"]) for t in added.targets] == [3, 3]
    objects = added.trace["objects"]
    assert objects == [1, 1, 3, 3, 3, 3, 3]
    for before, after in zip(plain.targets, added.targets):
        torch.testing.assert_close(after["boxes"][:1], before["boxes"])  # those of the layout stay first


def test_a_stage_too_short_for_the_teacher_to_add_anything_is_an_error(teacher: Any) -> None:
    with pytest.raises(InputError, match="sampling"):
        make(teacher, sampling=FalsePositives(every=100))


def test_a_warm_start_depends_on_the_bank_alone(teacher: Any) -> None:
    warm = WarmStart(batches=1, shorten=0.5)
    cold = fit(make(teacher)).finished
    kept = fit(make(teacher, warm_start=warm))
    assert len(kept.losses) == 6 + 3 + 3
    assert same(cold[0], kept.finished[0])  # the bank itself begins from noise
    assert not torch.equal(cold[1].images, kept.finished[1].images)

    class After(Some):
        def read(self, index: int) -> tuple[Tensor, list[Any]]:
            return cold[index].images, cold[index].targets

    part = fit(make(teacher, warm_start=warm, batches=After([2]))).finished
    assert same(part[2], kept.finished[2])
