from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.coco import CocoDataset
from detkd.errors import InputError
from detkd.runtime.compare_runs import Matched, match_runs, read_runs
from detkd.runtime.scored_run import data_facts

NAMES = ("circle", "square", "cross")
BOXES = [(10, 1, [2, 2, 20, 20]), (10, 2, [30, 5, 20, 30]), (11, 1, [0, 0, 40, 40])]  # image, category, xywh


def write_set(root: Path, names: tuple[str, ...] = NAMES, ids: tuple[int, ...] = (10, 11, 12), boxes: Any = BOXES) -> None:
    """Three grey images, categories in the order of names, of one supercategory each."""
    root.mkdir(exist_ok=True)
    for number in ids:
        Image.new("RGB", (64, 48), "grey").save(root / f"{number}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in ids]
    truths = [{"id": k, "image_id": i, "category_id": c, "bbox": b} for k, (i, c, b) in enumerate(boxes, 1)]
    categories = [{"id": k, "name": name, "supercategory": f"of {name}"} for k, name in enumerate(names, 1)]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": truths, "categories": categories}))


def write_run(folder: Path, root: Path, names: tuple[str, ...] = NAMES, found: Any = BOXES, **results: Any) -> str:
    """A run of evaluate, of a detector of these classes that is as sure of all it found."""
    folder.mkdir()
    OmegaConf.save({"data": {"root": str(root), "format": "folder", "on_unknown": "drop"}}, folder / "config.yaml")
    detections = [{"image_id": i, "category_id": c, "bbox": b, "score": 0.5} for i, c, b in found]
    (folder / "detections.json").write_text(json.dumps(detections))
    (folder / "results.json").write_text(json.dumps({"images": 3, "per_class": dict.fromkeys(names)} | results))
    return str(folder)


def matched(*folders: str) -> Matched:
    return match_runs(read_runs(OmegaConf.create(list(folders))))


def labels(matched: Matched, run: int) -> list[list[int]]:
    return [boxes.labels.tolist() for boxes in matched.scenes[run].found]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"


def test_detectors_are_compared_on_the_classes_that_all_know(root: Path, tmp_path: Path, recwarn: Any) -> None:
    all_known = write_run(tmp_path / "all", root)
    circles = [BOXES[0], BOXES[2]]
    few = write_run(tmp_path / "few", root, ("star", "cross", "circle"), circles)
    for order, classes, label in (((all_known, few), ("circle", "cross"), 0), ((few, all_known), ("cross", "circle"), 1)):
        both = matched(*order)
        assert (both.classes, both.left_out) == (classes, ("square",))
        assert labels(both, 0) == labels(both, 1) == [[label], [label], []]
        assert [boxes.labels.tolist() for boxes in both.scenes[0].true] == [[label], [label], []]
        assert both.supercategories[label] == "of circle"
        assert both.notes == ("Scored on the classes that all detectors know (2), without boxes of square.",)
    assert any("square" in str(warning.message) for warning in recwarn)


def test_classes_without_a_box_that_one_does_not_know_change_nothing(root: Path, tmp_path: Path) -> None:
    two = write_run(tmp_path / "two", root, ("square", "circle"))
    both = matched(write_run(tmp_path / "all", root), two)
    assert (both.classes, both.left_out, both.notes) == (("circle", "square"), (), ())
    assert labels(both, 0) == labels(both, 1) == [[0, 1], [0], []]


def test_no_class_in_common(root: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "stars", ("star",), boxes=BOXES[:1])
    stars = write_run(tmp_path / "b", tmp_path / "stars", ("star",), [])
    with pytest.raises(InputError, match="in common, found none: a knows circle, square, cross; b knows star"):
        matched(write_run(tmp_path / "a", root), stars)


def test_images_are_the_same_by_id_in_any_order(root: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "back", ids=(12, 11, 10))
    two = matched(write_run(tmp_path / "a", root), write_run(tmp_path / "b", tmp_path / "back"))
    assert labels(two, 0) == labels(two, 1) == [[0, 1], [0], []]
    assert [record.image_id for record in two.records] == [10, 11, 12]
    for mine, theirs in zip(two.scenes[0].found, two.scenes[1].found):
        assert np.array_equal(mine.xywh, theirs.xywh)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ids": (10, 11, 13)}, "3 and 3 images, 2 of them in both"),
        ({"boxes": [*BOXES[:2], (11, 1, [0, 0, 40, 39])]}, "the boxes of image 11 differ"),
        ({"boxes": BOXES[:2]}, "the boxes of image 11 differ"),
        ({"names": ("square", "circle", "cross")}, "the boxes of image 10 differ"),
    ],
)
def test_other_sets_are_refused(root: Path, tmp_path: Path, other: Any, message: str) -> None:
    write_set(tmp_path / "other", **other)
    with pytest.raises(InputError, match=f"expected runs on one data set, found a .* and b .*: {message}"):
        matched(write_run(tmp_path / "a", root), write_run(tmp_path / "b", tmp_path / "other", found=[]))


def facts(root: Path) -> dict[str, str]:
    return data_facts(CocoDataset(root, classes=NAMES, image_size=(32, 32), resize="stretch"), NAMES)


def test_other_pixels_are_refused_and_unknown_ones_noted(root: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "copy")
    write_set(tmp_path / "grey")
    Image.new("L", (64, 48), "grey").save(tmp_path / "grey" / "12.png")
    a = write_run(tmp_path / "a", root, **facts(root))
    b = write_run(tmp_path / "b", tmp_path / "grey", **facts(tmp_path / "grey"))
    same = write_run(tmp_path / "same", tmp_path / "copy", **facts(tmp_path / "copy"))
    unknown = write_run(tmp_path / "unknown", tmp_path / "copy")
    beside = write_run(tmp_path / "beside", root)
    with pytest.raises(InputError, match=r"found a \(.*: the images have other names or sizes of files"):
        matched(unknown, a, b)
    assert matched(a, same).notes == ()
    assert matched(a, beside).notes == ()  # one folder
    (note,) = matched(a, unknown).notes
    assert note == "Folders differ, and unknown did not record images_sha256: whether all saw the same pixels is not known."


def test_messages_name_the_folder_that_was_opened(root: Path, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", root), write_run(tmp_path / "b", root, images=2)
    OmegaConf.save({"data": {"root": str(root), "format": "folder", "length": 2}}, tmp_path / "b" / "config.yaml")
    root.rename(tmp_path / "moved")
    (tmp_path / "here").symlink_to(tmp_path / "moved")
    root.mkdir()  # another set in its place
    runs = read_runs(OmegaConf.create([a, b]), str(tmp_path / "here"))
    assert [run.root for run in runs] == [root, root]
    where = tmp_path / "moved"
    with pytest.raises(InputError, match=rf"found a \({where}\) and b \({where}\): 3 and 2 images, 2 of them in both"):
        match_runs(runs)
