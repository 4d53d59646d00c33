"""One way to open the data sets of all formats."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detkd.data.coco import official_json
from detkd.data.formats import open_dataset, standard_classes
from detkd.errors import InputError

SIZE: dict[str, Any] = {"image_size": (20, 40), "resize": "stretch"}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    for split, kind, number in (("train2017", "instances", 1), ("val2017", "instances", 2), ("test2017", "image_info", 3)):
        folder = tmp_path / ("images" if split == "val2017" else "") / split
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(folder / "a.jpg")
        content: dict[str, Any] = {
            "images": [{"id": number, "file_name": "a.jpg", "width": 40, "height": 20}],
            "categories": [{"id": 18, "name": "dog"}],
        }
        if kind == "instances":
            content["annotations"] = [{"id": 1, "image_id": number, "category_id": 18, "bbox": [1, 2, 3, 4]}]
        (tmp_path / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    return tmp_path


def test_cocos_own_layout(coco: Path) -> None:
    train, score = open_dataset(coco, "coco", **SIZE), open_dataset(coco, "coco", role="score", **SIZE)
    assert [train.image_id(0), score.image_id(0)] == [1, 2]
    assert train.records[0].path == (coco / "train2017/a.jpg").resolve()
    assert score.records[0].path == (coco / "images/val2017/a.jpg").resolve()
    assert train.category_ids == {0: 18}
    named = open_dataset(coco, "coco", split="test2017", **SIZE)
    assert named.records[0].path == (coco / "test2017/a.jpg").resolve()
    assert not named.labelled


def test_a_split_that_is_not_there(coco: Path) -> None:
    with pytest.raises(InputError, match=r"instances_val2014.json: expected .* annotations/instances_train2017.json, "):
        official_json(coco, "val2014")
    with pytest.raises(InputError, match="expected a folder of images, found nothing"):
        open_dataset(coco / "no", "coco", **SIZE)


def test_a_folder_needs_no_split(coco: Path) -> None:
    assert len(open_dataset(coco, annotations="annotations/instances_val2017.json", **SIZE)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "yolo"}, "format: expected one of folder, coco, voc, bdd100k, found 'yolo'"),
        ({"split": "val"}, "split: expected it with format=coco or voc or bdd100k alone, found it with format=folder"),
        ({"format": "coco", "annotations": "x.json"}, "annotations: expected it with format=folder or bdd100k alone"),
        ({"format": "bdd100k", "difficult": True}, "difficult: expected it with format=voc alone"),
        ({"format": "coco", "split": ["a", "b"]}, r"split: expected one name with format=coco, found \['a', 'b'\]"),
        ({"format": "coco", "split": 2017}, "split: expected one name with format=coco, found 2017"),
        ({"format": "bdd100k", "split": 1}, "split: expected one name with format=bdd100k, found 1"),
        ({"format": "voc", "split": 2007}, r"split: expected names, like .* with format=voc, found 2007"),
        ({"format": "voc", "split": ["VOC2007/test", 2012]}, r"split: expected names, like .* found \['VOC2007/test', 2012\]"),
    ],
)
def test_arguments_of_another_format(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path, **options, **SIZE)


@pytest.mark.parametrize("name", ["cat", "helmet"])
def test_proxy_images_need_no_boxes_of_these_classes(coco: Path, name: str) -> None:
    year = coco / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    (year / "ImageSets/Main/trainval.txt").write_text("a")
    Image.new("RGB", (40, 20)).save(year / "JPEGImages/a.jpg")
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    text = f"<filename>a.jpg</filename><size><width>40</width><height>20</height></size><object><name>{name}</name><bndbox>{box}</bndbox></object>"
    (year / "Annotations/a.xml").write_text(f"<annotation>{text}</annotation>")
    with pytest.raises(InputError, match=rf"found also \['{name}'\]"):
        open_dataset(coco, "voc", classes=["circle"], **SIZE)
    with pytest.warns(UserWarning, match="images are used without their boxes"):
        data = open_dataset(coco, "voc", classes=["circle"], proxy=True, **SIZE)
    assert not data.labelled
    assert data[0]["target"] is None


def test_standard_classes() -> None:
    found = {name: standard_classes(name) for name in ("folder", "coco", "voc", "bdd100k")}  # type: ignore[arg-type]
    assert {name: classes and len(classes) for name, classes in found.items()} == {
        "folder": None,
        "coco": None,
        "voc": 20,
        "bdd100k": 10,
    }
