from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from detkd.data.store import StoreWriter
from detkd.data.tilings import Tiling, Tilings
from detkd.errors import InputError
from detkd.runtime import tile
from detkd.runtime.run import config_dir


@lru_cache
def composed() -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("tile", ["n_images=5", "shard_size=2", "image_size=32", "counts=[2,2]"])


def config(*overrides: str) -> DictConfig:
    cfg = composed().copy()
    for override in overrides:
        key, value = override.split("=", 1)
        OmegaConf.update(cfg, key, OmegaConf.create(f"value: {value}").value, merge=False)
    return cfg


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three images with one object each, of two classes."""
    root = tmp_path / "source"
    root.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i,) * 3).save(root / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 40, "height": 30})
        annotations.append({"id": i, "image_id": i, "category_id": i % 2, "bbox": [4, 3, 20, 15]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return root


def open_writer(source: Path, folder: Path, *overrides: str) -> StoreWriter:
    cfg = config(f"data.root={source}", *overrides)
    return tile.open_writer(cfg, folder, tile.build_tilings(cfg))


def test_shards_are_written_once_and_the_last_is_smaller(source: Path, tmp_path: Path) -> None:
    cfg = config(f"data.root={source}")
    tilings = tile.build_tilings(cfg)
    writer = tile.open_writer(cfg, tmp_path / "out", tilings)
    assert tile.write_shards(writer, tilings, 5, 2) == 5
    assert tile.write_shards(writer, tilings, 5, 2) == 0
    store = writer.finish(3)
    assert [len(store.read_shard(i).targets) for i in range(3)] == [2, 2, 1]
    assert [set(record) for record in store.records] == [{"sources", "objects", "dropped"}] * 5
    results = tile.describe(tilings, store)
    assert results["objects_before"] == 1
    assert results["objects_after"] == results["images_in_one"] == 2
    assert "objects an image: 1.00 before, 2.00 after" in tile.summary(results)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(f"data.root={source}", "counts=[1,25]")
    tilings = tile.build_tilings(cfg)
    whole = tile.open_writer(cfg, tmp_path / "whole", tilings)
    tile.write_shards(whole, tilings, 5, 2)
    whole.finish(3)
    make, made = Tilings.__getitem__, []

    def interrupted(self: Tilings, index: int) -> Tiling:
        made.append(index)
        if len(made) == 4:
            raise KeyboardInterrupt
        return make(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Tilings, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tile.write_shards(tile.open_writer(cfg, tmp_path / "broken", tilings), tilings, 5, 2)
    writer = tile.open_writer(cfg, tmp_path / "broken", tilings)
    assert writer.finished() == {0}
    (tmp_path / "broken/shards/000000/000001.png").write_bytes(b"damaged")
    tile.write_shards(writer, tilings, 2, 2)
    assert "shard 0 is damaged and is made again: " in capsys.readouterr().out
    assert tile.write_shards(writer, tilings, 5, 2) == 3
    writer.finish(3)
    writer.claims.close()
    whole.claims.close()
    files = [{p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (whole.root, writer.root)]
    assert files[0] == files[1]
    assert len(files[0]) > 5


def test_two_at_once_share_the_work(source: Path, tmp_path: Path) -> None:
    cfg = config(f"data.root={source}", "n_images=40")
    with ThreadPoolExecutor(2) as pool:  # each with claims of its own, as two processes have

        def work() -> int:
            tilings = tile.build_tilings(cfg)
            return tile.write_shards(tile.open_writer(cfg, tmp_path / "out", tilings), tilings, 40, 2)

        made = [task.result() for task in (pool.submit(work), pool.submit(work))]
    assert sum(made) == 40
    assert len(open_writer(source, tmp_path / "out", "n_images=40").finish(20)) == 40


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "n_images=6",
        "shard_size=3",
        "image_size=[32,40]",
        "counts={3: 1}",
        "counts=coco",
        "min_side=1",
        "data.classes=[b,a]",
    ],
)
def test_another_set_does_not_go_into_the_same_folder(source: Path, tmp_path: Path, override: str) -> None:
    open_writer(source, tmp_path / "out")
    with pytest.raises(InputError, match="expected a store of this run, but it holds another run's; it differs in"):
        open_writer(source, tmp_path / "out", override)


def test_two_ways_to_say_the_same_are_one_run(source: Path, tmp_path: Path) -> None:
    open_writer(source, tmp_path / "out")
    open_writer(source, tmp_path / "out", "counts={2: 7}", "image_size=[32,32]", "min_side=2", "most=9", "data.classes=[a,b]")


def test_a_source_that_changed_is_another_run(source: Path, tmp_path: Path) -> None:
    open_writer(source, tmp_path / "out")
    content = json.loads((source / "instances.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (source / "instances.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"differs in .*recipe\.source\.annotations_sha256"):
        open_writer(source, tmp_path / "out")


def test_where_no_shard_could_be_made_the_folder_is_given_up(source: Path, tmp_path: Path) -> None:
    cfg = config(f"data.root={source}")
    tilings = tile.build_tilings(cfg)
    writer = tile.open_writer(cfg, tmp_path / "out", tilings)
    for path in source.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="expected an image that can be read"):
        tile.write_shards(writer, tilings, 5, 2)
    assert not [p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("n_images=0", "n_images: expected a whole number from 1, got 0"),
        ("n_images=1.5", "n_images: expected a whole number from 1, got 1.5"),
        ("n_images=many", "n_images: expected a whole number from 1, got 'many'"),
        ("shard_size=0", "shard_size: expected a whole number from 1, got 0"),
        ("seed=x", "seed: expected a whole number, got 'x'"),
        ("most=26", "most: expected 1 to 25 objects an image, got 26"),
        ("counts={26: 1}", "counts: expected counts of at most 25, got 26"),
        ("counts=[3,2]", "counts: expected \\[fewest, most\\]"),
        ("counts=imagenet", "counts: expected one of uniform, random, coco, voc"),
        ("counts=null", "counts: expected a name"),
        ("image_size=31", "image_size: expected at least 32 pixels a side, got \\[31, 31\\]"),
        ("image_size=[64]", "image_size: expected a side or \\[height, width\\] in pixels, got \\[64\\]"),
        ("image_size=big", "image_size: expected a side"),
        ("image_size=[64,64.5]", "image_size: expected a side"),
        ("min_side=wide", "min_side: expected a number of pixels, got 'wide'"),
        ("min_side=40", "min_side: expected pixels from 0 to the image's 32, got 40"),
        ("data.root=null", "data.root: expected a folder of images with boxes"),
        ("data.root=nowhere", "nowhere: expected a folder of images, found nothing"),
        ("data.annotations=gone.json", r"gone\.json: expected a COCO json, found none"),
        ("data.classes=[]", "data.classes: expected a list of names"),
        ("data.classes=a", "data.classes: expected a list of names"),
        ("data.classes=[1,2]", "data.classes: expected a list of names"),
        ("data.classes=[a,b,a]", "data.classes: expected names that differ, got \\['a'\\] more than once"),
        ("data.classes=[a,c]", "expected categories among the classes \\['a', 'c'\\], found also \\['b'\\]"),
        ("data.on_unknown=maybe", "data.on_unknown: expected error or drop, got 'maybe'"),
        ("data.invalid_boxes=maybe", "data.invalid_boxes: expected error or drop, got 'maybe'"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(source: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tile.build_tilings(config(f"data.root={source}", override))


def test_unknown_classes_can_be_dropped(source: Path) -> None:
    with pytest.warns(UserWarning, match="their boxes are left out"):
        tilings = tile.build_tilings(config(f"data.root={source}", "data.classes=[c,a]", "data.on_unknown=drop"))
    assert [record.image_id for record in tilings.records] == [0, 2]
    assert tilings[0].target["labels"].unique().tolist() == [1]
