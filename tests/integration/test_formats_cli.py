"""COCO, VOC and BDD100k on the command line: a student trained on each, scored while it is and afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

Command = Callable[..., Any]


def picture(path: Path, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, "navy")
    ImageDraw.Draw(image).rectangle(box, fill="orange")
    image.save(path)


def coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "square"}]}
        for number in range(4):
            picture(root / split / f"{number}.jpg", (4, 4, 20, 20), (32, 32))
            content["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 32, "height": 32})
            content["annotations"].append({"id": number, "image_id": number, "category_id": 3, "bbox": [4, 4, 16, 16]})
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def voc(root: Path) -> None:
    year = root / "VOC2012"
    (year / "Annotations").mkdir(parents=True)
    (year / "ImageSets/Main").mkdir(parents=True)
    corners = "<xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax>"
    box = f"<object><name>square</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
    for split in ("trainval", "test"):
        for number in range(4):
            picture(year / f"JPEGImages/{split}{number}.jpg", (4, 4, 20, 20), (32, 32))
            head = f"<filename>{split}{number}.jpg</filename><size><width>32</width><height>32</height></size>"
            (year / f"Annotations/{split}{number}.xml").write_text(f"<annotation>{head}{box}</annotation>")
        (year / f"ImageSets/Main/{split}.txt").write_text("".join(f"{split}{number}\n" for number in range(4)))


def bdd100k(root: Path) -> None:
    (root / "labels/det_20").mkdir(parents=True)
    for split in ("train", "val"):
        frames = []
        for number in range(4):
            picture(root / f"images/100k/{split}/{number}.jpg", (160, 90, 800, 450), (1280, 720))
            box = {"x1": 160, "y1": 90, "x2": 800, "y2": 450}
            frames.append({"name": f"{number}.jpg", "labels": [{"category": "square", "box2d": box}]})
        (root / f"labels/det_20/det_{split}.json").write_text(json.dumps(frames))


@pytest.mark.parametrize("make", [coco, voc, bdd100k], ids=lambda make: make.__name__)
def test_trained_and_scored(make: Callable[[Path], None], command: Command, tiny_distill: list[str], tmp_path: Path) -> None:
    name = make.__name__
    make(tmp_path / "set")
    own = ["data.root=set", f"data={name}", "data.num_workers=0"]
    scored = [f"val.format={name}", "val.root=set"]
    command("distill", *tiny_distill, *own, *scored, "loss=[mimic,detection]", "labels=real", "out=run", cwd=tmp_path).ok()
    trained = json.loads((tmp_path / "run/results.json").read_text())
    assert (trained["images"], trained["scored_on"]) == (4, "set")
    assert trained["ap"] is not None
    arguments = ["teacher=checkpoint", "teacher.path=run/student.safetensors", "device=cpu"]
    command("evaluate", *arguments, *own, "out=scores", cwd=tmp_path).ok()
    again = json.loads((tmp_path / "scores/results.json").read_text())
    assert again["ap50"] == trained["ap50"]
    assert set(again["per_class"]) == {"circle", "square", "cross"}


def test_difficult_objects_can_be_looked_at(command: Command, detectors: Path, tmp_path: Path) -> None:
    voc(tmp_path / "set")
    for path in (tmp_path / "set/VOC2012/Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    files = [f"teacher.path={detectors / 'teacher.safetensors'}", f"students={detectors / 'other.safetensors'}"]
    arguments = ["teacher=checkpoint", *files, "data=voc", "data.root=set", "pictures=0", "device=cpu"]
    found = []
    for difficult in ("false", "true"):
        command("features", *arguments, f"data.difficult={difficult}", f"out=run_{difficult}", cwd=tmp_path).ok()
        (student,) = json.loads((tmp_path / f"run_{difficult}" / "results.json").read_text())["students"].values()
        found.append(student["distance"]["object"])
    assert found[0] is None
    assert found[1] > 0


def test_what_is_wrong_is_said(command: Command, tiny_distill: list[str], detectors: Path, tmp_path: Path) -> None:
    voc(tmp_path / "set")
    teacher = ["teacher=checkpoint", f"teacher.path={detectors / 'teacher.safetensors'}", "out=out"]
    message = command("evaluate", *teacher, "data=voc", cwd=tmp_path).error()
    assert message.startswith("error: data.root: expected a folder of images")
    message = command("evaluate", *teacher, "data=voc", "data.root=set", "data.holdout=0.5", cwd=tmp_path).error()
    assert message.startswith("error: data.holdout: expected 0, since all images are scored")
    message = command("evaluate", *teacher, "data=voc", "data.root=set", "data.split=val", cwd=tmp_path).error()
    assert message.startswith("error: set: split: expected one of ['VOC2012/test', 'VOC2012/trainval'], got 'val'")
    message = command("evaluate", *teacher, "data=voc", "data.root=set", "data.split=2012", cwd=tmp_path).error()
    assert message.startswith("error: split: expected names, like trainval or [VOC2007/trainval,VOC2012/trainval]")
    message = command("evaluate", *teacher, "data=coco", "data.root=set", "data.split=2017", cwd=tmp_path).error()
    assert message == "error: split: expected one name with format=coco, found 2017\n"
    message = command("distill", *tiny_distill, "data=coco", "data.root=set", "out=out", cwd=tmp_path).error()
    assert message.startswith(
        "error: set/annotations/instances_train2017.json: expected the annotations of the split 'train2017'"
    )
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))
