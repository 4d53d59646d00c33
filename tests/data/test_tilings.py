from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from detkd.data.coco import CocoDataset
from detkd.data.counts import Counts
from detkd.data.tilings import Tilings, _draw
from detkd.errors import InputError

SIZE = (64, 96)
Folder = Callable[..., Path]


def grey(label: int) -> int:
    return 40 + 20 * label


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make a COCO folder: of each image the labels of its boxes; a box is the whole image, and the image is grey by its first label."""

    def make(objects: list[list[int]], name: str = "source", crowds: tuple[int, ...] = (), **more: Any) -> Path:
        root = tmp_path / name
        (root / "images").mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, labels in enumerate(objects):
            width, height = 30 + 7 * i, 50 - 3 * i
            value = grey(labels[0]) if labels else 0
            Image.new("RGB", (width, height), (value,) * 3).save(root / "images" / f"{i}.png")
            images.append({"id": 100 + i, "file_name": f"{i}.png", "width": width, "height": height})
            for label in labels:
                entry = {
                    "image_id": 100 + i,
                    "category_id": label + 1,
                    "bbox": [0, 0, width, height],
                    "iscrowd": int(i in crowds),
                }
                annotations.append({"id": len(annotations) + 1, **entry})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": f"c{i}"} for i in range(9)],
        }
        (root / "instances.json").write_text(json.dumps(content | more))
        return root

    return make


def source(root: Path) -> CocoDataset:
    return CocoDataset(root, image_size=SIZE, resize="stretch")


def tilings(root: Path, counts: Any, **settings: Any) -> Tilings:
    return Tilings(source(root), Counts(counts), SIZE, **settings)


def test_a_source_of_one_object_an_image_has_the_counts_wanted(folder: Folder) -> None:
    made = tilings(folder([[0], [1], [2], [3], [4]]), {1: 1, 3: 2, 7: 1})
    seen = [made[i] for i in range(60)]
    numbers = torch.bincount(torch.tensor([len(t.sources) for t in seen]), minlength=8)
    assert set(numbers.nonzero().flatten().tolist()) == {1, 3, 7}
    assert 20 <= int(numbers[3]) <= 40
    for t in seen:
        assert t.image.shape == (3, *SIZE)
        assert t.image.dtype == torch.uint8
        assert t.dropped == 0
        assert t.target["labels"].tolist() == [image_id - 100 for image_id in t.sources]
        for (x1, y1, x2, y2), label in zip(t.target["boxes"].int().tolist(), t.target["labels"].tolist()):
            assert bool((t.image[:, y1:y2, x1:x2] == grey(label)).all())
        # an image comes again only when all others are there
        assert len(set(t.sources)) == min(5, len(t.sources))


def test_each_is_a_function_of_seed_and_index(folder: Folder) -> None:
    root = folder([[0], [1], [2], [3], [4]])
    first, again, other = tilings(root, {4: 1}), tilings(root, {4: 1}), tilings(root, {4: 1}, seed=1)
    images: list[Tensor] = []
    for index in (5, 0, 3):
        assert torch.equal(first[index].image, again[index].image)
        assert torch.equal(first[index].target["boxes"], again[index].target["boxes"])
        assert first[index].sources == again[index].sources
        images.append(first[index].image)
    assert not torch.equal(images[0], images[1])
    assert any(first[i].sources != other[i].sources for i in range(3))


def test_images_are_added_while_they_bring_the_objects_nearer() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        drawn = _draw(6, [1, 2, 5, 11], generator)
        sums = [sum([1, 2, 5, 11][i] for i in drawn[:n]) for n in range(len(drawn) + 1)]
        assert 1 <= len(drawn) <= 6
        # each but the first brings the sum nearer to 6
        assert all(abs(after - 6) < abs(before - 6) for before, after in pairwise(sums[1:]))
    assert _draw(1, [40, 40], generator) in ([0], [1])
    assert len(_draw(25, [1], generator)) == 25


def test_the_mean_follows_the_counts_where_images_have_several_objects(folder: Folder) -> None:
    objects = [[0] * n for n in (1, 1, 1, 2, 2, 3, 4, 7)]
    made = tilings(folder(objects), {8: 1})
    assert made.objects_before == pytest.approx(21 / 8)
    counts = torch.tensor([float(len(made[i].target["labels"])) for i in range(40)])
    assert 7 <= counts.mean() <= 9
    assert counts.std() < 2


def test_crowds_and_images_without_boxes_are_left_out(folder: Folder) -> None:
    made = tilings(folder([[0], [], [2], [3]], crowds=(2,)), {2: 1})
    assert [record.image_id for record in made.records] == [100, 103]
    assert made.objects_before == pytest.approx(2 / 4)
    assert {image_id for i in range(10) for image_id in made[i].sources} == {100, 103}


def test_boxes_that_become_too_small_are_counted(folder: Folder) -> None:
    made = tilings(folder([[0], [1]]), {2: 1}, min_side=60)  # cells are 64 x 48 or 32 x 96
    assert [(made[i].dropped, len(made[i].target["labels"])) for i in range(5)] == [(2, 0)] * 5


def test_the_checksum_is_of_what_the_annotations_say(folder: Folder) -> None:
    sums = {
        name: tilings(folder(objects, name, **more), {1: 1}).sha256()
        for name, objects, more in (
            ("one", [[0], [1]], {}),
            ("same", [[0], [1]], {"info": {"year": 2020}}),
            ("label", [[0], [2]], {}),
            ("more", [[0], [1], [1]], {}),
            ("names", [[0], [1]], {"categories": [{"id": i + 1, "name": f"d{i}"} for i in range(9)]}),
        )
    }
    assert sums["one"] == sums["same"]
    assert len(set(sums.values())) == 4


def test_what_cannot_be_tiled_is_refused(folder: Folder, tmp_path: Path) -> None:
    root = folder([[0], [1]])
    with pytest.raises(InputError, match="counts: expected counts of at most 25, got 26"):
        tilings(root, {26: 1})
    with pytest.raises(InputError, match=r"image_size: expected at least 32 pixels a side, got \[31, 64\]"):
        Tilings(source(root), Counts({1: 1}), (31, 64))
    for bad in (-1, 65, float("nan")):
        with pytest.raises(InputError, match="min_side: expected pixels from 0 to the image's 64"):
            tilings(root, {1: 1}, min_side=bad)
    with pytest.raises(InputError, match="empty: expected images with boxes, found 2 images without any"):
        tilings(folder([[], []], "empty"), {1: 1})
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "plain" / "a.png")
    with pytest.raises(InputError, match="plain: expected images with boxes, found images without annotations"):
        tilings(tmp_path / "plain", {1: 1})


def test_a_damaged_image_or_one_of_another_size_is_named(folder: Folder) -> None:
    root = folder([[0]])
    made = tilings(root, {1: 1})
    Image.new("RGB", (9, 11)).save(root / "images/0.png")
    with pytest.raises(InputError, match=r"0\.png: expected 30 x 50 pixels as its annotations say, found 9 x 11"):
        made[0]
    (root / "images/0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0\.png: expected an image that can be read"):
        made[0]
