from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from detkd.data.scenes import CLASSES
from detkd.data.store import StoreWriter
from detkd.data.voc import CLASSES as VOC_CLASSES
from detkd.detectors.checkpoint import fingerprint
from detkd.errors import InputError
from detkd.runtime import data
from detkd.runtime.run import config_dir


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("distill", ["teacher=none", "logger=none", "callbacks=none", "batch_size=2", *overrides])


@pytest.fixture
def detector(doubles: Any) -> Any:
    torch.manual_seed(0)
    return doubles.TinyDetector(classes=("a", "b", "c"), image_size=(32, 32))


def make_set(folder: Path, detector: Any, boxes: bool = True) -> Path:
    """A complete set of 4 images for this teacher."""
    writer = StoreWriter(folder, {}, ("a", "b", "c"), (32, 32), teacher_sha256=fingerprint(detector), seed=0)
    box = torch.tensor([[4.0, 4, 20, 24]]) if boxes else torch.zeros(0, 4)
    target: Any = {"boxes": box, "labels": torch.zeros(len(box), dtype=torch.int64)}
    writer.write_shard(0, torch.full((4, 3, 32, 32), 90, dtype=torch.uint8), [target] * 4)
    writer.finish(1)
    return folder


def test_classes_come_from_the_data_where_nobody_else_knows_them(tmp_path: Path, detector: Any) -> None:
    folder = make_set(tmp_path / "set", detector)
    assert data.classes_of(config(f"data.root={folder}")) == ("a", "b", "c")
    assert data.classes_of(config("data=scenes")) == CLASSES["main"]
    assert data.classes_of(config("data=scenes", "data.variant=same_domain")) == CLASSES["same_domain"]


def test_a_student_that_knows_its_classes_is_asked_no_further() -> None:
    assert data.classes_of(config("student.classes=[x]")) == ()
    assert data.classes_of(config("student=checkpoint", "student.path=x")) == ()


def test_without_a_teacher_there_must_be_data(detector: Any) -> None:
    with pytest.raises(InputError, match=r"data\.root: expected a folder"):
        data.classes_of(config())
    with pytest.raises(InputError, match=r"data\.root: expected a folder"):
        data.build_datamodule(config(), detector, None)


def test_the_data_module_is_at_the_size_and_in_the_classes_of_the_student(tmp_path: Path, detector: Any) -> None:
    folder = make_set(tmp_path / "set", detector)
    module = data.build_datamodule(config(f"data.root={folder}", "data.length=6"), detector, None)
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (2, 3, 32, 32)
    assert len(module.train_set) == 6
    detector.spec = type(detector.spec)(("x",), (32, 32))
    with pytest.raises(InputError, match=r"instances\.json: expected categories"):
        data.build_datamodule(config(f"data.root={folder}", "labels=real"), detector, None)


def test_the_latest_set_of_this_teacher_is_found_under_runs(
    tmp_path: Path, detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = copy.deepcopy(detector)
    with torch.no_grad():
        other.head.bias.add_(1)
    make_set(tmp_path / "runs" / "invert" / "other", other)
    with pytest.raises(InputError, match=r"data\.root: .*none; make one with: python -m detkd\.invert teacher="):
        data.build_datamodule(config(), detector, detector)
    mine = make_set(tmp_path / "runs" / "invert" / "mine", detector)
    cfg = config()
    data.build_datamodule(cfg, detector, detector)
    assert Path(cfg.data.root).resolve() == mine


def test_where_labels_are_not_asked_for_a_set_of_other_classes_gives_its_images(tmp_path: Path, detector: Any) -> None:
    folder = make_set(tmp_path / "set", detector)
    detector.spec = type(detector.spec)(("x",), (32, 32))
    with pytest.warns(UserWarning, match="images are used without their boxes"):
        module = data.build_datamodule(config(f"data.root={folder}"), detector, None)
    assert next(iter(module.train_dataloader())).targets is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["select=holdout", "data.holdout=0.5", "steps=3", "val_every=4"], r"val_every: expected at most steps=3"),
        (["select=best"], r"select: expected one of last, holdout, val, found 'best'"),
        (["select=val"], r"select=val: .*val\.root=DIR"),
        (["select=holdout"], r"select=holdout: .*data\.holdout"),
    ],
)
def test_what_select_needs(tmp_path: Path, detector: Any, overrides: list[str], message: str) -> None:
    folder = make_set(tmp_path / "set", detector)
    with pytest.raises(InputError, match=message):
        data.build_datamodule(config(f"data.root={folder}", *overrides), detector, None)


def test_select_val_looks_at_the_validation_images(tmp_path: Path, detector: Any) -> None:
    folder, val = make_set(tmp_path / "set", detector), make_set(tmp_path / "val", detector)
    module = data.build_datamodule(config(f"data.root={folder}", f"val.root={val}", "select=val"), detector, None)
    assert module.val_set is not None
    assert len(module.val_set) == 4  # type: ignore[arg-type]
    assert data.build_datamodule(config(f"data.root={folder}", f"val.root={val}"), detector, None).val_set is None


@pytest.mark.parametrize("drawn", [["data=scenes", "data.train_images=4"], ["data=noise", "data.images=4"]])
def test_select_val_goes_with_images_that_are_drawn(voc: Path, doubles: Any, drawn: list[str]) -> None:
    student = doubles.TinyDetector(classes=CLASSES["main"], image_size=(32, 32))
    val = [f"val.root={voc}", "val.format=voc", "val.split=test", "select=val"]
    for path in (voc / "VOC2007/Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("cat", student.spec.classes[0]))
    module = data.build_datamodule(config(*drawn, *val), student, None)
    assert module.val_set is not None
    assert len(module.val_set) == 2  # type: ignore[arg-type]
    (batch,) = module.val_dataloader()
    assert batch.images.shape == (2, 3, 32, 32)
    assert [len(target["labels"]) for target in batch.targets] == [1, 1]


@pytest.mark.parametrize("variant", ["same_domain", "out_of_domain"])
def test_scenes_of_other_classes_are_images_alone(variant: str, doubles: Any) -> None:
    student = doubles.TinyDetector(classes=CLASSES["main"], image_size=(32, 32))
    scenes = ["data=scenes", "data.train_images=4", f"data.variant={variant}", "batch_size=4"]
    (batch,) = data.build_datamodule(config(*scenes), student, None).train_dataloader()
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.targets is None
    with pytest.raises(InputError, match=r"data=scenes: expected the classes .* labels=teacher takes the images alone"):
        data.build_datamodule(config(*scenes, "labels=real"), student, None)
    (own,) = data.build_datamodule(config(*scenes, "data.variant=main"), student, None).train_dataloader()
    assert len(own.targets) == 4


def test_a_box_without_extent_costs_no_other(tmp_path: Path, doubles: Any) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    boxes = [[1, 2, 30, 0], [4, 4, 16, 16], [8, 8, 16, 16]]  # the first as in train2017
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 32, "height": 32} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    for i in range(3):
        Image.new("RGB", (32, 32)).save(tmp_path / "train2017" / f"{i}.jpg")
    student = doubles.TinyDetector(classes=("cat",), image_size=(32, 32))
    coco = ["data=coco", f"data.root={tmp_path}"]
    for overrides in (["labels=real"], ["labels=none"], ["labels=teacher", "data.invalid_boxes=error"]):
        with pytest.warns(UserWarning, match="left out 1 boxes of no extent"):
            module = data.build_datamodule(config(*coco, *overrides), student, None)
        assert [len(module.train_set[i]["target"]["labels"]) for i in range(3)] == [0, 1, 1]
    with pytest.raises(InputError, match=r"annotations\[0\]\.bbox: expected a box of positive extent"):
        data.build_datamodule(config(*coco, "labels=real", "data.invalid_boxes=error"), student, None)
    assert scores(student, *coco, "labels=none", "data.holdout=0.4", "data.num_workers=0")["images"] == 1


def scores(detector: Any, *overrides: str) -> dict[str, Any]:
    cfg = config(*overrides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data.score_student(cfg, detector, data.build_datamodule(cfg, detector, None))


def test_the_student_is_scored_on_val_or_on_what_was_held_out(tmp_path: Path, detector: Any) -> None:
    root = f"data.root={make_set(tmp_path / 'set', detector)}"
    val = make_set(tmp_path / "val", detector)
    on_val = scores(detector, root, f"val.root={val}")
    assert set(on_val) == {*data.KEYS, "scored_on", "scored_sha256"}
    assert (on_val["images"], on_val["scored_on"]) == (4, str(val))
    assert 0 <= on_val["ap50"] <= 1
    held_out = scores(detector, root, "data.holdout=0.5")
    assert (held_out["images"], held_out["scored_on"]) == (2, "held-out images")


def test_without_boxes_to_score_on_every_score_is_none(tmp_path: Path, detector: Any) -> None:
    root = f"data.root={make_set(tmp_path / 'set', detector)}"
    nothing = dict.fromkeys([*data.KEYS, "scored_on"])
    assert scores(detector, root) == nothing
    for i in range(3):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / f"{i}.png").write_bytes((tmp_path / "set/shards/000000/000000.png").read_bytes())
    assert scores(detector, f"data.root={tmp_path / 'plain'}", "data.holdout=0.4") == nothing


def test_summary_is_one_line_also_without_scores() -> None:
    known = {"ap50": 0.5, "ap": 0.25, "images": 4, "scored_on": "val"}
    assert data.summary(known) == "AP50 0.500, AP 0.250 on 4 images (val)"
    assert data.summary({"ap50": None}).startswith("not scored")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A year's folder with 8 images, each with one cat that counts and one that is difficult."""
    year = tmp_path / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    for name in map(str, range(8)):
        Image.new("RGB", (64, 64)).save(year / "JPEGImages" / f"{name}.jpg")
        objects = "".join(
            f"<object><name>cat</name><difficult>{i}</difficult><bndbox><xmin>{1 + 32 * i}</xmin><ymin>1</ymin>"
            f"<xmax>{32 + 32 * i}</xmax><ymax>64</ymax></bndbox></object>"
            for i in (0, 1)
        )
        text = f"<annotation><filename>{name}.jpg</filename><size><width>64</width><height>64</height></size>{objects}</annotation>"
        (year / "Annotations" / f"{name}.xml").write_text(text)
    (year / "ImageSets/Main/trainval.txt").write_text("0\n1\n2\n3\n4\n5\n")
    (year / "ImageSets/Main/test.txt").write_text("6\n7\n")
    return tmp_path


def test_a_set_of_another_format(voc: Path, doubles: Any) -> None:
    overrides = ["data=voc", f"data.root={voc}", "data.num_workers=0", "labels=real"]
    assert data.classes_of(config(*overrides)) == VOC_CLASSES
    student = doubles.TinyDetector(classes=("cat",), image_size=(32, 32))
    module = data.build_datamodule(config(*overrides), student, None)
    assert len(module.train_set) == 6
    target = module.train_set[0]["target"]
    assert target["boxes"].tolist() == [[0, 0, 16, 32]]
    scored = config(*overrides, "select=val", f"val.root={voc}", "val.format=voc", "val_every=1")
    module = data.build_datamodule(scored, student, None)
    assert module.val_set is not None
    assert len(module.val_set) == 2  # type: ignore[arg-type]
    assert data.open_labelled(scored.val, student.spec).ground_truth(0)["ignore"].tolist() == [False, True]
    with pytest.raises(
        InputError, match=r"data\.root: expected the folder of the set, like data\.root=DIR with data=voc, found none"
    ):
        data.build_datamodule(config("data=voc"), student, None)


def test_held_out_images_are_scored_without_their_difficult_objects(
    voc: Path, doubles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("data=voc", f"data.root={voc}", "data.num_workers=0", "labels=real", "data.holdout=0.5")
    student = doubles.TinyDetector(classes=("cat",), image_size=(32, 32))

    def both(detector: Any, dataset: Any, device: str) -> list[Any]:
        boxes = torch.tensor([[0.0, 0, 32, 64], [32, 0, 64, 64]])
        return [
            {"boxes": boxes, "labels": torch.zeros(2).long(), "scores": torch.tensor([0.5, 0.9])} for _ in range(len(dataset))
        ]

    monkeypatch.setattr(data, "detect", both)
    scores = data.score_student(cfg, student, data.build_datamodule(cfg, student, None))
    assert scores["ap"] == pytest.approx(1)
    assert (scores["images"], scores["scored_on"]) == (3, "held-out images")
