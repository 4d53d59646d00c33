"""The dataset on disk: whole, resumable, the same whoever writes it."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detkd.data.store import StoreWriter, find_latest_store, holds_store, open_store
from detkd.errors import InputError
from detkd.structures import Target

CLASSES = ("cat", "dog")


def writer(root: Path, **changes: Any) -> StoreWriter:
    recipe = {"loss": {"tv": 1.5, "bn": 2}, "stages": [(160, 500)]} | changes.pop("recipe", {})
    options: dict[str, Any] = {"teacher_sha256": "t" * 64, "seed": 3} | changes
    return StoreWriter(root, recipe, CLASSES, (16, 24), **options)


def shard(index: int, n: int = 3) -> tuple[Tensor, list[Target], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (n, 3, 16, 24), generator=generator, dtype=torch.uint8)
    targets = [Target(boxes=torch.tensor([[0.1, 1.0, 10.3 + i, 16.0]]), labels=torch.tensor([i % 2])) for i in range(n)]
    targets[-1] = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return images, targets, [{"loss": 0.25 * i, "shard": index} for i in range(n)]


def complete(root: Path, **changes: Any) -> Path:
    made = writer(root, **changes)
    for index in range(2):
        made.write_shard(index, *shard(index))
    made.finish(2)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_shards_come_back_bit_for_bit(tmp_path: Path) -> None:
    made = writer(tmp_path)
    images, targets, records = shard(12)
    made.write_shard(12, images, targets, records)
    back = made.read_shard(12)
    assert torch.equal(back.images, images)
    assert back.records == records
    for ours, theirs in zip(targets, back.targets):
        assert torch.equal(ours["boxes"], theirs["boxes"])
        assert torch.equal(ours["labels"], theirs["labels"])
    assert sorted(p.name for p in (tmp_path / "shards" / "000012").iterdir()) == [
        *("000000.png", "000000.txt", "000001.png", "000001.txt", "000002.png", "000002.txt"),
        "shard.json",
    ]
    assert made.finished() == {12}


def test_finish_merges_to_coco(tmp_path: Path) -> None:
    store = open_store(complete(tmp_path / "a"), verify=True)
    assert (len(store), store.n_shards, store.classes, store.image_size) == (6, 2, CLASSES, (16, 24))
    assert (store.teacher_sha256, store.seed, store.recipe["stages"]) == ("t" * 64, 3, [[160, 500]])
    assert store.records == shard(0)[2] + shard(1)[2]
    assert torch.equal(store.read_shard(1).images, shard(1)[0])
    content = json.loads((tmp_path / "a" / "instances.json").read_bytes())
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert content["images"][3] == {"id": 4, "file_name": "shards/000001/000000.png", "height": 16, "width": 24}
    assert [a["image_id"] for a in content["annotations"]] == [1, 2, 4, 5]
    first = content["annotations"][0]
    assert (first["id"], first["category_id"], first["iscrowd"]) == (1, 1, 0)
    assert first["bbox"] == pytest.approx([0.1, 1, 10.2, 15])
    assert first["area"] == pytest.approx(10.2 * 15)


def test_same_bytes_whatever_the_order_folder_and_interruptions(tmp_path: Path) -> None:
    complete(tmp_path / "a")
    first, second = writer(tmp_path / "elsewhere" / "b"), writer(tmp_path / "elsewhere" / "b")
    second.write_shard(1, *shard(1))
    (tmp_path / "elsewhere" / "b" / "shards" / ".000000.killed.tmp").mkdir()
    (tmp_path / "elsewhere" / "b" / "shards" / ".000000.killed.tmp" / "000000.png").write_bytes(b"half")
    assert first.finished() == {1}
    first.write_shard(0, *shard(0))
    second.finish(2)
    assert tree(tmp_path / "a") == tree(tmp_path / "elsewhere" / "b")
    # once more over a complete store changes nothing
    again = writer(tmp_path / "a")
    assert again.finished() == {0, 1}
    again.write_shard(0, *shard(0))
    again.finish(2)
    assert tree(tmp_path / "a") == tree(tmp_path / "elsewhere" / "b")


def test_no_trace_of_time_or_place(tmp_path: Path) -> None:
    for content in tree(complete(tmp_path / "a")).values():
        assert str(tmp_path).encode() not in content
        assert b"tIME" not in content  # of PNG


def test_another_recipe_is_refused_with_its_keys(tmp_path: Path) -> None:
    writer(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"recipe.loss.tv: 1.5 there, 2.5 here; seed: 3 there, 4 here"):
        writer(tmp_path, recipe={"loss": {"tv": 2.5, "bn": 2}}, seed=4)
    with pytest.raises(InputError, match="teacher_sha256"):
        writer(tmp_path, teacher_sha256="u")
    assert tree(tmp_path) == before


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"expected an empty folder.*notes.txt"):
        writer(tmp_path)
    assert list(tree(tmp_path)) == ["notes.txt"]
    (tmp_path / ".hydra").mkdir()
    assert writer(tmp_path, beside=("*.txt",)).finished() == set()
    with pytest.raises(InputError, match="found a file"):
        writer(tmp_path / "notes.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"format": "else"}')
    with pytest.raises(InputError, match=r"manifest.json: expected format 'detkd.store', got 'else'"):
        writer(tmp_path / "other")


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = writer(tmp_path)
    before = tree(tmp_path)
    images, targets, records = shard(0)
    with pytest.raises(ValueError, match="JSON"):
        made.write_shard(0, images, targets, [{"score": float("nan")}] * 3)
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "000002.png":
            raise OSError("no space left")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        made.write_shard(0, images, targets, records)
    assert tree(tmp_path) == before
    assert made.finished() == set()
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_shard_is_not_overwritten_with_other_content(tmp_path: Path) -> None:
    made = writer(tmp_path)
    made.write_shard(0, *shard(0))
    before = tree(tmp_path)
    with pytest.raises(InputError, match="another"):
        made.write_shard(0, *shard(1))
    assert tree(tmp_path) == before


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    made = writer(tmp_path)
    images, targets, records = shard(0)
    boxes = targets[0]["boxes"]

    def with_first(target: Target) -> list[Target]:
        return [target, *targets[1:]]

    for arguments, message in [
        ((images.float(), targets, records), "uint8"),
        ((images[..., :8], targets, records), "uint8 images"),
        ((images, targets[:2], records), "3 targets and records"),
        ((images, with_first(Target(boxes=boxes + 10, labels=torch.tensor([0]))), records), "inside 24 x 16"),
        ((images, with_first(Target(boxes=boxes.flip(1), labels=torch.tensor([0]))), records), "positive extent"),
        ((images, with_first(Target(boxes=boxes * torch.nan, labels=torch.tensor([0]))), records), "positive extent"),
        ((images, with_first(Target(boxes=boxes, labels=torch.tensor([2]))), records), "labels from 0 to 1"),
        ((images, with_first(Target(boxes=boxes, labels=torch.tensor([0, 1]))), records), "for 2 labels"),
    ]:
        with pytest.raises(ValueError, match=message):
            made.write_shard(0, *arguments)
    assert made.finished() == set()


def test_finish_needs_every_shard(tmp_path: Path) -> None:
    made = writer(tmp_path)
    made.write_shard(1, *shard(1))
    with pytest.raises(InputError, match=r"missing are \[0\]"):
        made.finish(2)
    with pytest.raises(InputError, match=r"beyond them \[1\]"):
        made.finish(1)
    with pytest.raises(InputError, match="complete store"):
        open_store(tmp_path)


def test_opening_finds_damage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"manifest.json: expected the manifest"):
        open_store(tmp_path)
    root = complete(tmp_path / "a")
    picture = root / "shards" / "000001" / "000002.png"
    sound = picture.read_bytes()
    picture.write_bytes(sound[:-1])
    open_store(root)
    with pytest.raises(InputError, match=r"000002.png: expected sha256"):
        open_store(root, verify=True)
    with pytest.raises(InputError, match=r"000002.png: expected sha256"):
        open_store(root).read_shard(1)
    picture.write_bytes(sound)
    for name in ("instances.json", "shards/000000/shard.json"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content + b" ")
        with pytest.raises(InputError, match=rf"{name}: expected sha256"):
            open_store(root)
        (root / name).unlink()
        with pytest.raises(InputError, match=rf"{name}: expected a file"):
            open_store(root)
        (root / name).write_bytes(content)
    open_store(root, verify=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "expected version 1, got 2"),
        ("format", None, "expected format"),
        ("classes", 3, r"wrong type: \['classes'\]"),
        ("image_size", ["a", 2], "image_size"),
        ("shards", [3], "shards"),
        ("records", {}, "records"),
        ("seed", None, "seed"),
    ],
)
def test_manifests_of_another_kind(tmp_path: Path, key: str, value: Any, message: str) -> None:
    root = complete(tmp_path / "a")
    manifest = json.loads((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(InputError, match=message) as caught:
        open_store(root)
    assert "manifest.json" in str(caught.value)


def test_latest_store_of_a_teacher(tmp_path: Path) -> None:
    assert find_latest_store(tmp_path / "none", "t" * 64) is None
    old, new = complete(tmp_path / "x" / "old"), complete(tmp_path / "a" / "b" / "c" / "new")
    other = complete(tmp_path / "other", teacher_sha256="u" * 64)
    writer(tmp_path / "running")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    complete(tmp_path / "1" / "2" / "3" / "4" / "deep")
    for age, root in enumerate([new, old, other]):
        os.utime(root / "manifest.json", (1000 - age, 1000 - age))
    assert find_latest_store(tmp_path, "t" * 64) == new
    os.utime(old / "manifest.json", (2000, 2000))
    assert find_latest_store(tmp_path, "t" * 64) == old
    assert find_latest_store(tmp_path, "v" * 64) is None
    assert holds_store(old)
    assert holds_store(tmp_path / "running")
    assert not holds_store(tmp_path / "broken")
    assert not holds_store(tmp_path)


def write_half(root: Path, rank: int, barrier: Any) -> None:
    barrier.wait(timeout=60)
    made = writer(root)
    for index in range(rank, 6, 2):
        made.write_shard(index, *shard(index))


def test_two_processes_write_one_store(tmp_path: Path) -> None:
    # forked, because importing torch twice takes longer than all other tests of this file
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=write_half, args=(tmp_path / "store", rank, barrier)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    made = writer(tmp_path / "store")
    assert made.finished() == set(range(6))
    assert len(made.finish(6)) == 18
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == [
        *("classes.names", "data.yaml", "instances.json", "manifest.json", "shards", "train.txt"),
    ]
    alone = writer(tmp_path / "alone")
    for index in range(6):
        alone.write_shard(index, *shard(index))
    alone.finish(6)
    assert tree(tmp_path / "alone") == tree(tmp_path / "store")


def test_a_store_without_shards_can_be_withdrawn(tmp_path: Path) -> None:
    first = StoreWriter(tmp_path / "set", {"a": 1}, ("x",), (8, 8), teacher_sha256="t", seed=0)
    first.withdraw()
    other = StoreWriter(tmp_path / "set", {"a": 2}, ("x",), (8, 8), teacher_sha256="t", seed=0)
    other.write_shard(
        0, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}]
    )
    other.withdraw()
    assert other.finished() == {0}


def test_repair_removes_what_is_damaged_and_nothing_else(tmp_path: Path) -> None:
    store = writer(tmp_path)
    for index in range(4):
        store.write_shard(index, *shard(index))
    assert store.repair() == {}
    (tmp_path / "shards" / "000001" / "000001.png").write_bytes(b"")
    (tmp_path / "shards" / "000002" / "shard.json").write_text("[")
    (tmp_path / "shards" / "000003" / "000000.png").unlink()
    damaged = store.repair()
    assert sorted(damaged) == [1, 2, 3]
    assert "000001.png: expected sha256" in damaged[1]
    assert store.finished() == {0}
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == ["000000"]


def test_a_shard_that_lost_its_json_is_damaged_and_can_be_written_again(tmp_path: Path) -> None:
    store = writer(tmp_path)
    store.write_shard(0, *shard(0))
    (tmp_path / "shards" / "000000" / "shard.json").unlink()
    assert store.finished() == set()
    store.write_shard(0, *shard(0))
    assert store.finished() == {0}
    (tmp_path / "shards" / "000000" / "shard.json").unlink()
    assert sorted(store.repair()) == [0]


@pytest.mark.parametrize("change", [("boxes", [[0.0, 0.0, 1.0, 1.0]]), ("labels", [1]), ("record", {"loss": 9.0})])
def test_a_changed_entry_of_a_shard_is_damage(tmp_path: Path, change: tuple[str, Any]) -> None:
    store = writer(tmp_path)
    store.write_shard(0, *shard(0))
    path = tmp_path / "shards" / "000000" / "shard.json"
    content = json.loads(path.read_text())
    content["images"][0][change[0]] = change[1]
    path.write_text(json.dumps(content))
    assert "its own checksum" in store.repair()[0]


def test_labels_beside_an_image_are_checked(tmp_path: Path) -> None:
    store = writer(tmp_path)
    store.write_shard(0, *shard(0))
    (tmp_path / "shards" / "000000" / "000001.txt").write_text("0 0.5 0.5 1 1\n")
    assert "000001.txt" in store.repair()[0]


def test_a_complete_set_that_lost_a_shard_is_open_again(tmp_path: Path) -> None:
    root = complete(tmp_path)
    shutil.rmtree(root / "shards" / "000001")
    store = writer(root)
    assert store.repair() == {}
    assert json.loads((root / "manifest.json").read_text())["complete"] is False
    images, targets, records = shard(1)
    store.write_shard(1, images, targets, [r | {"loss": 7.0} for r in records])  # as another machine makes it
    assert store.repair() == {}
    assert len(store.finish(2)) == 6


def test_a_shard_that_the_manifest_does_not_know_is_damaged(tmp_path: Path) -> None:
    store = writer(tmp_path)
    store.write_shard(0, *shard(0))
    store.finish(1)
    shutil.rmtree(tmp_path / "shards" / "000000")
    store.write_shard(0, *shard(1))  # sound in itself, but another
    assert sorted(store.repair()) == [0]


def test_images_that_were_rejected_can_be_dropped(tmp_path: Path) -> None:
    store = writer(tmp_path)
    images, targets, records = shard(0)
    for record, accepted in zip(records, (True, False, True)):
        record["accepted"] = accepted
    store.write_shard(0, images, targets, records)
    dropped = store.finish(1, "drop")
    assert len(dropped) == 2
    assert torch.equal(dropped.read_shard(0).images, images[[0, 2]])
    assert [i["file_name"] for i in json.loads((tmp_path / "instances.json").read_bytes())["images"]] == [
        "shards/000000/000000.png",
        "shards/000000/000002.png",
    ]
    assert len(store.finish(1, "keep")) == 3
    for record in records:
        record["accepted"] = False
    other = writer(tmp_path / "none")
    other.write_shard(0, images, targets, records)
    with pytest.raises(InputError, match="expected an image that was accepted"):
        other.finish(1, "drop")
