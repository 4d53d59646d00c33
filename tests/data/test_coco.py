"""Image files and folders as samples."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detkd.data import images as image_files
from detkd.data.coco import CocoDataset
from detkd.data.dataset import spread
from detkd.data.images import read_image
from detkd.data.store import StoreWriter
from detkd.errors import InputError
from detkd.structures import Target

SHARED = Path(os.environ.get("DETKD_SHARED", "../shared")) / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder (DETKD_SHARED)")
SIZE: dict[str, Any] = {"image_size": (32, 32), "resize": "stretch"}


def gradient(height: int, width: int) -> Image.Image:
    values = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(values)


def write_coco(root: Path, name: str = "instances.json", images: str = "images") -> None:
    (root / images).mkdir(parents=True, exist_ok=True)
    gradient(20, 40).save(root / images / "a.png")
    gradient(30, 10).save(root / images / "b.png")
    content = {
        "images": [
            {"id": 70, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 90, "file_name": "b.png", "width": 10, "height": 30},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 70, "category_id": 90, "bbox": [10, 5, 20, 10], "area": 99, "iscrowd": 0},
            {"id": 2, "image_id": 70, "category_id": 3, "bbox": [0, 0, 40, 20], "area": 5, "iscrowd": 1},
        ],
    }
    (root / name).write_text(json.dumps(content))


def test_grey_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "1"):
        Image.new("L", (4, 3), 255).convert(mode).save(tmp_path / "x.png")
        image = read_image(tmp_path / "x.png")
        assert image.mode == "RGB"
        assert image.getpixel((1, 1)) == (255, 255, 255)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("LA", (2, 2), (0, 128)).save(tmp_path / "half.png")
    assert read_image(tmp_path / "half.png").getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 1, 2, 3])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    image = read_image(tmp_path / f"x{suffix}")
    assert [image.getpixel((i, 0)) for i in range(4)] == [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]


def test_real_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x.tif.*8 or 16 bits"):
        read_image(tmp_path / "x.tif")


def rotated(path: Path, orientation: int, width: int = 8, height: int = 4) -> Image.Image:
    """Stored pixels: top left corner white, all else black."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return image


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (7, 0)), (3, (7, 3)), (4, (0, 3)), (5, (0, 0)), (6, (3, 0)), (7, (3, 7)), (8, (0, 7))],
)
def test_exif_orientation(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    rotated(tmp_path / "x.png", orientation)
    image = read_image(tmp_path / "x.png")
    assert image.size == ((4, 8) if orientation >= 5 else (8, 4))
    assert image.getpixel(corner) == (255, 255, 255)


def test_exif_orientation_against_the_json(tmp_path: Path) -> None:
    stored = rotated(tmp_path / "x.png", 6)
    assert read_image(tmp_path / "x.png", (4, 8)).tobytes() == stored.tobytes()
    assert read_image(tmp_path / "x.png", (8, 4)).size == (4, 8)
    rotated(tmp_path / "square.png", 6, 4, 4)
    assert read_image(tmp_path / "square.png", (4, 4)).getpixel((3, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, format=kind)
    content = buffer.getvalue()
    path = tmp_path / "broken.img"
    for damaged in (b"", b"not an image", content[:10], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"broken.img: expected an image"):
            read_image(path)
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "gone.png")


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    gradient(40, 40).save(buffer, format="PNG")
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy()
        content[generator.integers(8, len(content), 3)] = generator.integers(0, 256, 3)
        (tmp_path / "x.png").write_bytes(content.tobytes())
        try:
            mode = read_image(tmp_path / "x.png").mode
        except InputError:
            refused += 1
        else:
            assert mode == "RGB"
    assert refused > 20


def test_bombs_and_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 100)
    gradient(11, 10).save(tmp_path / "big.png")
    with pytest.raises(InputError, match=r"big.png: expected at most 100 pixels, found 10 x 11"):
        read_image(tmp_path / "big.png")
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match=r"x.png"):
        read_image(tmp_path / "x.png")


def test_samples_of_a_coco_folder(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = CocoDataset(tmp_path, classes=["x", "dog", "cat"], image_size=(40, 40), resize="letterbox")
    sample = data[0]
    assert sample["image"].shape == (3, 40, 40)
    assert sample["image"].dtype == torch.uint8
    assert sample["image_id"] == 70
    assert sample["original_size"] == (20, 40)
    assert sample["target"] is not None
    assert sample["target"]["boxes"].tolist() == [[10, 15, 30, 25]]
    assert sample["target"]["labels"].tolist() == [1]
    undone = sample["placement"].undo_xyxy(sample["target"]["boxes"], sample["original_size"])
    assert undone.tolist() == [[10, 5, 30, 15]]
    assert (data.classes, data.category_ids, data.labelled) == (("x", "dog", "cat"), {1: 90, 2: 3}, True)
    truth = data.ground_truth(0)
    assert truth["boxes"].tolist() == [[10, 5, 30, 15], [0, 0, 40, 20]]
    assert truth["iscrowd"].tolist() == [False, True]
    assert truth["area"].tolist() == [99, 5]
    empty = data[1]["target"]
    assert empty is not None
    assert empty["boxes"].shape == (0, 4)


@pytest.mark.parametrize("images", ["images", ".", "images/train", "train"])
def test_places_of_images(tmp_path: Path, images: str) -> None:
    write_coco(tmp_path, "instances_train.json", images)
    assert len(CocoDataset(tmp_path, **SIZE)) == 2


def test_official_coco_layout(tmp_path: Path) -> None:
    write_coco(tmp_path, images="val2017")
    (tmp_path / "annotations").mkdir()
    shutil.move(tmp_path / "instances.json", tmp_path / "annotations" / "instances_val2017.json")
    assert CocoDataset(tmp_path, **SIZE)[0]["image_id"] == 70
    assert CocoDataset(tmp_path, "annotations/instances_val2017.json", **SIZE)[0]["image_id"] == 70


def test_which_json(tmp_path: Path) -> None:
    write_coco(tmp_path, "train.json")
    write_coco(tmp_path, "val.json")
    with pytest.raises(InputError, match=r"found train.json, val.json; name one"):
        CocoDataset(tmp_path, **SIZE)
    with pytest.raises(InputError, match=r"test.json: expected a COCO json, found none; .* has train.json, val.json"):
        CocoDataset(tmp_path, "test.json", **SIZE)
    assert len(CocoDataset(tmp_path, "val.json", **SIZE)) == 2
    write_coco(tmp_path)
    assert len(CocoDataset(tmp_path, **SIZE)) == 2


def test_plain_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    gradient(4, 6).save(tmp_path / "b.PNG", format="PNG")
    gradient(4, 6).save(tmp_path / "a.jpg")
    gradient(1, 1).save(tmp_path / "sub" / "c.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    data = CocoDataset(tmp_path, **SIZE)
    assert [r.path.name for r in data.records] == ["a.jpg", "b.PNG", "c.bmp"]
    assert [data[i]["target"] for i in range(3)] == [None] * 3
    assert [data[i]["image_id"] for i in range(3)] == [1, 2, 3]
    assert data[2]["original_size"] == (1, 1)
    assert not data.labelled
    with pytest.raises(InputError, match="expected annotations"):
        data.ground_truth(0)


def test_folders_without_anything(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected images, found none"):
        CocoDataset(tmp_path, **SIZE)
    with pytest.raises(InputError, match="found nothing"):
        CocoDataset(tmp_path / "gone", **SIZE)


def test_store_opens_as_a_dataset(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", {}, ("cat", "dog"), (32, 32), teacher_sha256="t", seed=0)
    with pytest.raises(InputError, match="complete store"):
        CocoDataset(tmp_path / "s", **SIZE)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    target = Target(boxes=torch.tensor([[1.25, 2.0, 9.0, 9.5]]), labels=torch.tensor([1]))
    writer.write_shard(0, images, [target, target])
    writer.finish(1)
    data = CocoDataset(tmp_path / "s", classes=("dog", "cat"), **SIZE)
    assert torch.equal(data[1]["image"], images[1])
    found = data[1]["target"]
    assert found is not None
    assert torch.equal(found["boxes"], target["boxes"])
    assert found["labels"].tolist() == [0]


def test_size_that_the_json_denies(tmp_path: Path) -> None:
    write_coco(tmp_path)
    gradient(21, 40).save(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"a.png: expected 40 x 20 pixels as its annotations say, found 40 x 21"):
        CocoDataset(tmp_path, **SIZE)[0]


def test_length(tmp_path: Path) -> None:
    assert spread(3, None) == [0, 1, 2]
    assert spread(3, 7) == [0, 1, 2, 0, 1, 2, 0]
    assert spread(6, 3) == [0, 2, 4]
    with pytest.raises(InputError, match="length"):
        spread(3, 0)
    write_coco(tmp_path)
    data = CocoDataset(tmp_path, length=5, **SIZE)
    assert [data[i]["image_id"] for i in range(len(data))] == [70, 90, 70, 90, 70]
    assert len(CocoDataset(tmp_path, length=1, **SIZE)) == 1
    with pytest.raises(IndexError):
        data[5]


def test_cache_reads_once(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = CocoDataset(tmp_path, cache=True, **SIZE)
    fresh = CocoDataset(tmp_path, cache=False, **SIZE)
    first = data[0]["image"]
    assert torch.equal(first, fresh[0]["image"])
    (tmp_path / "images" / "a.png").unlink()
    assert torch.equal(data[0]["image"], first)
    with pytest.raises(InputError, match=r"a\.png"):
        fresh[0]


@needs_shared
@pytest.mark.parametrize(
    ("name", "annotations", "images", "boxes"),
    [
        ("coco-val164", None, 164, 1220),
        ("coco-train128", None, 128, 939),
        ("voc100", None, 100, 273),
        ("carla256", None, 256, 1240),
        ("bccd", "val.json", 87, 1137),
        ("fruit300", "test.json", 60, 117),
    ],
)
def test_real_data(name: str, annotations: str | None, images: int, boxes: int) -> None:
    data = CocoDataset(SHARED / name, annotations, image_size=(64, 64), resize="letterbox")
    assert len(data) == images
    assert sum(len(data.ground_truth(i)["labels"]) for i in range(images)) == boxes
    for index in range(0, images, 20):
        sample = data[index]
        assert sample["target"] is not None
        truth = data.ground_truth(index)
        kept = truth["boxes"][~truth["iscrowd"]]
        undone = sample["placement"].undo_xyxy(sample["target"]["boxes"], sample["original_size"])
        torch.testing.assert_close(undone, kept, rtol=0, atol=1e-2)


@needs_shared
def test_real_choices_and_class_lists() -> None:
    with pytest.raises(InputError, match=r"test.json, train.json, val.json"):
        CocoDataset(SHARED / "bccd", **SIZE)
    names = (SHARED.parent / "weights" / "coco.names").read_text().split("\n")
    data = CocoDataset(SHARED / "coco-val164", classes=[n for n in names if n], **SIZE)
    assert len(data.category_ids) == 80
    assert data.category_ids[79] == 90
    with pytest.raises(InputError, match=r"found also \['bike'"):
        CocoDataset(SHARED / "carla256", classes=["vehicle"], **SIZE)
