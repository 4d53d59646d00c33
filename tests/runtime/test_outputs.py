"""All that is written beside a complete set."""

import json
from pathlib import Path

import pytest
import torch

from detkd.data.coco import CocoDataset
from detkd.data.store import StoreWriter, open_store
from detkd.errors import InputError
from detkd.runtime import outputs
from detkd.runtime.outputs import labels_of, write_outputs
from detkd.structures import Target


def make_store(root: Path) -> Path:
    writer = StoreWriter(root, {}, ("a", "b"), (16, 16), teacher_sha256="t", seed=0)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[3] = images[0]
    targets = [
        Target(boxes=torch.tensor([[0.0, 0.0, 8.0, 8.0]] * i).reshape(-1, 4), labels=torch.arange(i) % 2) for i in range(4)
    ]
    writer.write_shard(0, images, targets, [{"teacher_score": 0.5}] * 4)
    writer.finish(1)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_it_adds_files_and_changes_none(tmp_path: Path) -> None:
    root = make_store(tmp_path)
    before = tree(root)
    assert write_outputs(root, {"teacher_ap50": 0.75, "verifier_ap50": None, "seconds": 1.5}) == {"duplicates": 1}
    after = tree(root)
    assert set(after) - set(before) == {"README.md", "duplicates.json", "gallery/index.html", "gallery/gallery.js"}
    assert {name: after[name] for name in before} == before
    assert json.loads(after["duplicates.json"])["duplicate_of"] == {"3": 0}
    assert "| teacher AP50 | 0.750 |" in after["README.md"].decode()
    assert "| near-duplicates (duplicates.json) | 1 (25.0%) |" in after["README.md"].decode()
    assert b'["teacher AP50",0.75]' in after["gallery/gallery.js"]
    # the set is still one
    assert len(open_store(root, verify=True)) == 4
    assert len(CocoDataset(root, image_size=(16, 16), resize="stretch")) == 4


def test_the_same_for_every_folder_and_every_call(tmp_path: Path) -> None:
    trees = []
    for name in ("a", "elsewhere/b"):
        root = make_store(tmp_path / name)
        write_outputs(root, {"teacher_ap50": 0.75, "seconds": len(name)})
        trees.append(tree(root))
        write_outputs(root, {"teacher_ap50": 0.75})
        assert tree(root) == trees[-1]
    assert trees[0] == trees[1]


def test_duplicates_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_store(tmp_path)
    calls = []
    look = outputs.find_duplicates
    monkeypatch.setattr(outputs, "find_duplicates", lambda *arguments: calls.append(arguments) or look(*arguments))
    for _ in range(2):
        write_outputs(root, {})
    assert len(calls) == 1
    assert write_outputs(root, {}, distance=0) == {"duplicates": 1}
    assert len(calls) == 2


def test_labels_by_image(tmp_path: Path) -> None:
    assert labels_of(open_store(make_store(tmp_path))) == [[], [0], [0, 1], [0, 1, 0]]


def test_a_damaged_image_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    root = make_store(tmp_path)
    (root / "shards" / "000000" / "000002.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"000002\.png: expected sha256"):
        write_outputs(root, {})
    assert not {"README.md", "duplicates.json", "gallery"} & {p.name for p in root.iterdir()}


def test_images_that_were_left_out_are_not_counted(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, {}, ("a",), (16, 16), teacher_sha256="t", seed=0)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[3] = images[1]
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    for index, accepted in enumerate([(False, True), (False, False), (True, True)]):
        part = images[2 * index % 4 : 2 * index % 4 + 2] if index else images[:2]
        writer.write_shard(index, part, [nothing] * 2, [{"accepted": value} for value in accepted])
    writer.finish(3, rejected="drop")
    assert write_outputs(tmp_path, {}) == {"duplicates": 1}
    gallery = (tmp_path / "gallery" / "gallery.js").read_text()
    assert '"files":[1,2000000,2000001]' in gallery
    assert '"duplicates":[[2,0]]' in gallery
