"""BDD100k's labels: read as meant, or refused with the file and entry named."""

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkd.data.bdd100k import CLASSES, read_bdd100k
from detkd.data.formats import open_dataset
from detkd.detectors.torchvision.labels import COCO_CLASSES
from detkd.errors import InputError
from detkd.evaluation.coco import score


def label(category: str, x1: float, y1: float, x2: float, y2: float) -> dict[str, Any]:
    return {
        "id": "0",
        "attributes": {"occluded": False},
        "category": category,
        "box2d": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
    }


NEW: list[dict[str, Any]] = [
    {"name": "a.jpg", "labels": [label("pedestrian", 10.5, 20, 29.5, 79), label("other vehicle", 0, 0, 1279, 719)]},
    {"name": "b.jpg"},
    {"name": "c.jpg", "labels": None},
]
OLD: list[dict[str, Any]] = [
    {
        "name": "a.jpg",
        "attributes": {"weather": "clear"},
        "timestamp": 10000,
        "labels": [
            label("person", 1, 2, 3, 4),
            label("motor", 1, 2, 3, 4),
            label("bike", 1, 2, 3, 4),
            {"category": "lane", "poly2d": [{"vertices": [[0, 0]], "types": "L", "closed": False}], "id": 3},
        ],
    }
]
FILES = {"new": "labels/det_20/det_train.json", "old": "labels/bdd100k_labels_images_train.json"}


def write(root: Path, content: Any, file: str = FILES["new"]) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images/100k/train"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "unnamed.jpg"):
        Image.new("RGB", (1280, 720)).save(folder / name)
    write(tmp_path, NEW)
    return tmp_path


def test_reads_what_is_meant(root: Path) -> None:
    read = read_bdd100k(root)
    assert read.classes == CLASSES
    assert len(CLASSES) == 10
    assert [record.path.name for record in read.records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert read.records[0].size == (720, 1280)
    first = read.records[0].truth
    assert first is not None
    assert first["boxes"].tolist() == [[10.5, 20, 30.5, 80], [0, 0, 1280, 720]]
    assert first["labels"].tolist() == [0, CLASSES.index("car")]
    assert first["iscrowd"].tolist() == [False, True]
    assert first["ignore"].tolist() == [False, False]
    assert all(record.truth is not None and len(record.truth["labels"]) == 0 for record in read.records[1:])


def test_crowds_are_scored_by_the_part_of_a_detection_inside_and_are_no_targets(root: Path) -> None:
    crowd = label("car", 100, 100, 899, 699)
    crowd["attributes"]["crowd"] = True
    none = label("car", 0, 0, 49, 49) | {"attributes": None}
    write(root, [{"name": "a.jpg", "labels": [none, crowd, label("other vehicle", 900, 0, 1279, 719)]}])
    data = open_dataset(root, "bdd100k", image_size=(720, 1280), resize="stretch")
    truth, target = data.ground_truth(0), data[0]["target"]
    assert truth["iscrowd"].tolist() == [False, True, True]
    assert target is not None
    assert target["boxes"].tolist() == [[0, 0, 50, 50]]
    # small boxes inside both: their IoU with either is far below .5
    boxes = torch.tensor([[0.0, 0, 50, 50], [200, 200, 240, 240], [1000, 100, 1040, 140]])
    found: Any = {"boxes": boxes, "labels": torch.full((3,), CLASSES.index("car")), "scores": torch.tensor([0.5, 0.9, 0.9])}
    assert score([found], [truth], CLASSES).ap == pytest.approx(1)


def test_labels_of_2018_and_other_folders(root: Path) -> None:
    write(root, OLD, FILES["old"])
    assert len(read_bdd100k(root).records) == 3  # of 2020, where there are both
    for folder in (root, root.parent):
        if folder == root.parent:
            root = root.rename(root.parent / "bdd100k")
        (root / FILES["new"]).unlink(missing_ok=True)
        truth = read_bdd100k(folder).records[0].truth
        assert truth is not None
        assert [CLASSES[i] for i in truth["labels"].tolist()] == ["pedestrian", "motorcycle", "bicycle"]
    write(root, {"frames": OLD, "config": {}}, "mine.json")
    assert len(read_bdd100k(root, annotations="mine.json").records) == 1


def test_classes_of_a_detector(root: Path) -> None:
    write(root, OLD)
    truth = read_bdd100k(root, classes=COCO_CLASSES).records[0].truth
    assert truth is not None
    assert [COCO_CLASSES[i] for i in truth["labels"].tolist()] == ["person", "motorcycle", "bicycle"]
    write(root, [{"name": "a.jpg", "labels": [label("rider", 1, 1, 2, 2), label("car", 1, 1, 2, 2)]}])
    with pytest.raises(InputError, match=r"det_train.json: .*found also \['rider'\]; on_unknown=drop"):
        read_bdd100k(root, classes=COCO_CLASSES)


def test_as_a_dataset(root: Path) -> None:
    data = open_dataset(root, "bdd100k", image_size=(36, 64), resize="stretch")
    target = data[0]["target"]
    assert target is not None
    assert target["boxes"].tolist() == [pytest.approx([0.525, 1, 1.525, 4])]
    Image.new("RGB", (640, 360)).save(root / "images/100k/train/a.jpg")
    with pytest.raises(InputError, match=r"a.jpg: expected 1280 x 720 pixels"):
        data[0]


def change(*way: Any, value: Any) -> Callable[[Path], None]:
    """NEW with one value replaced, or removed (Ellipsis)."""

    def apply(root: Path) -> None:
        content: Any = copy.deepcopy(NEW)
        at = content
        for key in way[:-1]:
            at = at[key]
        if value is ...:
            del at[way[-1]]
        else:
            at[way[-1]] = value
        write(root, content)

    return apply


LABEL = (0, "labels", 0)
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "expected a folder of images, found nothing"),
    "no labels": (
        lambda root: (root / FILES["new"]).unlink(),
        r"det_train.json: expected the labels of the split 'train' there or",
    ),
    "no images": (lambda root: shutil.rmtree(root / "images"), r"images/100k/train: expected the images of the split 'train'"),
    "no image": (
        lambda root: (root / "images/100k/train/b.jpg").unlink(),
        r"det_train.json: frames\[1\].name: expected an image 'b.jpg'",
    ),
    "not json": (lambda root: write(root, "[{"), "det_train.json: expected json, but it does not parse"),
    "no list": (lambda root: write(root, "3"), "det_train.json: frames: expected a list, got 3"),
    "empty": (lambda root: write(root, "[]"), "expected images, found none"),
    "no name": (change(0, "name", value=...), r"det_train.json: frames\[0\]: expected the keys \['name'\]"),
    "name leaves": (change(0, "name", value="../val/a.jpg"), r"\[0\].name: expected a path below the data folder"),
    "name twice": (change(1, "name", value="a.jpg"), r"\[1\].name: expected names that differ, got 'a.jpg' again"),
    "labels": (change(0, "labels", value=3), r"\[0\].labels: expected a list, got 3"),
    "no category": (change(*LABEL, "category", value=...), r"\[0\].labels\[0\]: expected the keys \['category'\]"),
    "category": (change(*LABEL, "category", value=7), r"\[0\].labels\[0\].category: expected a name, got 7"),
    "unknown": (change(*LABEL, "category", value="dodo"), r"found also \['dodo'\]"),
    "no box": (change(*LABEL, "box2d", value=...), r"\[0\].labels\[0\].box2d: expected an object with the keys \['x1'"),
    "no corner": (
        change(*LABEL, "box2d", "y2", value=...),
        r"box2d: expected the keys \['x1', 'y1', 'x2', 'y2'\], missing are \['y2'\]",
    ),
    "corner": (change(*LABEL, "box2d", "y2", value="9"), r"\[0\].labels\[0\].box2d.y2: expected a number, got '9'"),
    "inside out": (change(*LABEL, "box2d", "y2", value=10), r"\[0\].labels\[0\].box2d: expected a box of positive extent"),
    "outside": (change(*LABEL, "box2d", "x1", value=1280), r"box of positive extent inside an image of 1280 x 720"),
    "crowd": (change(*LABEL, "attributes", value={"crowd": "yes"}), r"attributes.crowd: expected true or false, got 'yes'"),
    "attributes": (change(*LABEL, "attributes", value=[]), r"labels\[0\].attributes: expected an object"),
    "not finite": (change(*LABEL, "box2d", "x2", value=float("nan")), "expected a box of positive extent"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_named(root: Path, fault: str) -> None:
    spoil, message = BAD[fault]
    spoil(root)
    with pytest.raises(InputError, match=message):
        open_dataset(root, "bdd100k", image_size=(36, 64), resize="stretch")


@pytest.mark.parametrize("split", ["../train", "", "10k/train"])
def test_a_split_is_a_name(root: Path, split: str) -> None:
    with pytest.raises(InputError, match="split: expected train or val"):
        read_bdd100k(root, split)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.sampled_from(["a.jpg", "..", "\ud800", "\0", "car"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "labels", "box2d"]), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES: list[tuple[Any, ...]] = [
    (0,), (0, "name"), (0, "labels"), LABEL, (*LABEL, "category"), (*LABEL, "box2d"), *((*LABEL, "box2d", k) for k in ("x1", "y1", "x2", "y2"))
]  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=ANYTHING | st.just(...), drop=st.booleans())
def test_only_input_errors_escape(root: Path, place: tuple[Any, ...], value: Any, drop: bool) -> None:
    change(*place, value=value)(root)
    options: dict[str, Any] = {"on_unknown": "drop", "invalid_boxes": "drop"} if drop else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = read_bdd100k(root, **options)
        except InputError as error:
            str(error).encode()
        else:
            assert all(bool(r.truth["boxes"].isfinite().all()) for r in read.records if r.truth)


CORNER = st.floats(0, 600, width=32)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes=st.lists(st.tuples(CORNER, CORNER, st.floats(0, 100, width=32), st.sampled_from(CLASSES)), max_size=4))
def test_any_boxes_come_back(root: Path, boxes: list[tuple[float, float, float, str]]) -> None:
    write(root, [{"name": "a.jpg", "labels": [label(name, x, y, x + side, y + side) for x, y, side, name in boxes]}])
    truth = read_bdd100k(root).records[0].truth
    assert truth is not None
    assert [CLASSES[i] for i in truth["labels"].tolist()] == [name for *_, name in boxes]
    expected = [pytest.approx([x, y, x + side + 1, y + side + 1], abs=1e-3) for x, y, side, _ in boxes]
    assert truth["boxes"].tolist() == expected
