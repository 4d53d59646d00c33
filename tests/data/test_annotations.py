"""COCO json of unknown origin: read as meant, or refused with the entry named."""

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkd.data.annotations import coco_json, read_annotations, read_boxes
from detkd.errors import InputError

GOOD: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 20},
        {"id": 9, "file_name": "sub/b.png", "width": 10, "height": 30},
    ],
    "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "idle"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [30, 10, 20, 20], "iscrowd": 1},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (10, 30)).save(tmp_path / "images" / "sub" / "b.png")
    return tmp_path


def read(folder: Path, content: Any, **options: Any) -> Any:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(path, [folder / "images"], **options)


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value replaced, or removed (Ellipsis)."""
    content = copy.deepcopy(GOOD)
    at: Any = content
    *way, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    for key in way:
        at = at[key]
    if value is ...:
        at.pop(last, None) if isinstance(at, dict) else at.pop(last)
    else:
        at[last] = value
    return content


def test_reads_what_is_meant(folder: Path) -> None:
    read_all = read(folder, GOOD)
    assert read_all.classes == ("cat", "idle", "dog")
    assert read_all.category_ids == {0: 3, 1: 5, 2: 90}
    first, second = read_all.records
    assert (first.image_id, first.size, second.size) == (7, (20, 40), (30, 10))
    # the second overhangs and is clipped; its area is missing, so that of the clipped box
    assert first.truth["boxes"].tolist() == [[1, 2, 4, 6], [30, 10, 40, 20]]
    assert first.truth["labels"].tolist() == [2, 0]
    assert first.truth["iscrowd"].tolist() == [False, True]
    assert first.truth["area"].tolist() == [5, 100]
    assert second.truth["boxes"].shape == (0, 4)
    assert second.truth["labels"].dtype == torch.int64


def test_categories_map_by_name(folder: Path) -> None:
    read_some = read(folder, GOOD, classes=("x", "dog", "cat"))
    assert read_some.records[0].truth["labels"].tolist() == [1, 2]
    assert read_some.category_ids == {1: 90, 2: 3}
    sofa = read(folder, changed("categories.0.name", "sofa"), classes=["couch", "cat"])
    assert sofa.records[0].truth["labels"].tolist() == [0, 1]
    couch = read(folder, changed("categories.0.name", "couch"), classes=["sofa", "cat"])
    assert couch.records[0].truth["labels"].tolist() == [0, 1]


def test_without_annotations_there_is_no_truth(folder: Path) -> None:
    assert [r.truth for r in read(folder, changed("annotations", ...)).records] == [None, None]


def test_unknown_categories(folder: Path) -> None:
    with pytest.raises(InputError, match=r"instances.json.*\['cat', 'bird'\].*\['dog'\].*on_unknown=drop"):
        read(folder, GOOD, classes=["cat", "bird"])
    with pytest.warns(UserWarning, match="dog") as caught:
        dropped = read(folder, GOOD, classes=["cat", "bird"], on_unknown="drop")
    assert len(caught) == 1
    assert dropped.records[0].truth["labels"].tolist() == [0]
    with pytest.raises(InputError, match="none that is among them"):
        read(folder, GOOD, classes=["bird"], on_unknown="drop")


@pytest.mark.parametrize(
    "bbox",
    [
        [1, 1, 0, 5],
        [1, 1, 5, -2],
        [50, 1, 5, 5],
        [-5, 1, 5, 5],
        [1, 1, float("nan"), 2],
        [1, 1, float("inf"), 2],
        [1, 1, 10**400, 2],
    ],
)
def test_boxes_of_no_extent(folder: Path, bbox: list[float]) -> None:
    content = changed("annotations.0.bbox", bbox)
    with pytest.raises(InputError, match=r"annotations\[0\].bbox: expected .*40 x 20.*invalid_boxes=drop"):
        read(folder, content)
    with pytest.warns(UserWarning, match="left out 1 boxes"):
        assert read(folder, content, invalid_boxes="drop").records[0].truth["labels"].tolist() == [0]


def test_proxy_images_lose_the_boxes_that_are_wrong_and_no_others(folder: Path) -> None:
    content = changed("annotations.0.bbox", [1, 1, 5, 0])
    with pytest.warns(UserWarning, match="left out 1 boxes") as caught:
        known = read(folder, content, proxy=True)
    assert len(caught) == 1
    assert [record.truth["labels"].tolist() for record in known.records] == [[0], []]
    with pytest.warns(UserWarning, match=r"used without their boxes: .*found also \['dog'\]; on_unknown=drop"):
        images = read(folder, content, proxy=True, classes=["cat"])
    assert [record.truth for record in images.records] == [None, None]
    assert [record.path.name for record in images.records] == ["a.png", "b.png"]
    assert images.category_ids == {}
    with pytest.warns(UserWarning, match="their boxes are left out"):
        some = read(folder, GOOD, proxy=True, classes=["cat"], on_unknown="drop")
    assert some.records[0].truth["labels"].tolist() == [0]
    with pytest.raises(InputError, match="expected four numbers"):
        read(folder, changed("annotations.0.bbox", [1]), proxy=True)


def test_two_spellings_of_a_class_are_the_first(folder: Path) -> None:
    content = changed("categories.0.name", "motorcycle")
    assert read(folder, content, classes=["motor", "motorbike", "cat"]).records[0].truth["labels"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("images", ..., r"missing are \['images'\]"),
        ("categories", ..., r"missing are \['categories'\]"),
        ("images", {}, "images: expected a list"),
        ("images.0", 3, r"images\[0\]: expected an object"),
        ("images.1.id", ..., r"images\[1\].*missing are \['id'\]"),
        ("images.1.id", "9", r"images\[1\].id: expected a whole number"),
        ("images.1.id", True, r"images\[1\].id: expected a whole number"),
        ("images.1.id", 7, r"images\[1\]: expected image ids that differ, got 7"),
        ("images.1.width", 0, r"images\[1\]: expected width and height"),
        ("images.1.height", -3, r"images\[1\]: expected width and height"),
        ("images.1.width", 2.5, r"images\[1\].width: expected a whole number"),
        ("images.1.file_name", 5, r"images\[1\].file_name: expected the path"),
        ("images.1.file_name", "gone.png", r"images\[1\].file_name: expected an image 'gone.png' in .*images, found none"),
        ("images.1.file_name", "sub", r"images\[1\].file_name: expected an image"),
        ("images.1.file_name", "../images/a.png", "below the data folder"),
        ("images.1.file_name", "..\\images\\a.png", "below the data folder"),
        ("images.1.file_name", "/etc/hostname", "below the data folder"),
        ("images.1.file_name", "C:\\a.png", "below the data folder"),
        ("images.1.file_name", "a\0.png", r"images\[1\].file_name"),
        ("images.1.file_name", "x" * 5000, r"images\[1\].file_name"),
        ("categories.1.id", 90, r"categories\[1\]: expected category ids that differ"),
        ("categories.1.name", "", r"categories\[1\].name: expected a name"),
        ("annotations", None, "annotations: expected a list"),
        ("annotations.0.image_id", 8, r"annotations\[0\].image_id: expected the id of an image"),
        ("annotations.0.category_id", 91, r"annotations\[0\].category_id: expected one of \[3, 5, 90\], got 91"),
        ("annotations.0.bbox", ..., r"annotations\[0\].*missing are \['bbox'\]"),
        ("annotations.0.bbox", [1, 2, 3], r"annotations\[0\].bbox: expected four numbers"),
        ("annotations.0.bbox", [1, 2, 3, "4"], r"annotations\[0\].bbox: expected four numbers"),
        ("annotations.0.area", -1, r"annotations\[0\].area"),
        ("annotations.0.iscrowd", 2, r"annotations\[0\].iscrowd: expected 0 or 1"),
    ],
)
def test_names_the_entry(folder: Path, path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(folder, changed(path, value))
    assert "instances.json" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "[" * 100_000, '{"images": \ud83d'.encode("utf-16", "surrogatepass").hex()]
)
def test_not_a_coco_json(folder: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"instances\.json"):
        read(folder, text)


def test_links_must_not_leave_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "c.png"
    Image.new("RGB", (10, 30)).save(outside)
    os.symlink(outside, folder / "images" / "c.png")
    with pytest.raises(InputError, match=r"images\[1\].file_name.*a link that leaves it"):
        read(folder, changed("images.1.file_name", "c.png"))
    os.symlink("a.png", folder / "images" / "d.png")
    assert read(folder, changed("images.1.file_name", "d.png")).records[1].path.name == "d.png"


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from([0, 1, 3, 7, 9, 90, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a.png", "../a.png", "\ud800", "\0", "sub"]),
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)
PLACES = ["images", "categories", "annotations"] + [
    f"{kind}.{i}{key}"
    for kind, keys in {
        "images": ("", ".id", ".file_name", ".width", ".height"),
        "categories": ("", ".id", ".name"),
        "annotations": ("", ".image_id", ".category_id", ".bbox", ".bbox.2", ".area", ".iscrowd"),
    }.items()
    for i in (0, 1)
    for key in keys
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=ANYTHING | st.just(...), drop=st.booleans())
def test_only_input_errors_escape(folder: Path, place: str, value: Any, drop: bool) -> None:
    options: dict[str, Any] = {"on_unknown": "drop", "invalid_boxes": "drop"} if drop else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read(folder, changed(place, value), classes=["dog", "cat"] if drop else None, **options)
        except InputError as error:
            str(error).encode()  # can be printed
        else:
            for record in found.records:
                assert record.truth is None or bool(record.truth["boxes"].isfinite().all())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_only_input_errors_escape_from_bytes(folder: Path, data: bytes) -> None:
    path = folder / "instances.json"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_annotations(path, [folder])


def test_coco_json_is_read_back(folder: Path) -> None:
    content = coco_json([("a.png", [[1.5, 2, 4, 6]], [1]), ("sub/b.png", [], [])], ("cat", "dog"), (20, 40))
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1.5, 2.0, 2.5, 4.0], "area": 10.0, "iscrowd": 0}
    ]
    back = read(folder, content)
    assert back.classes == ("cat", "dog")
    assert back.records[0].truth["boxes"].tolist() == [[1.5, 2, 4, 6]]
    assert back.records[0].truth["labels"].tolist() == [1]
    assert len(back.records[1].truth["labels"]) == 0


def test_boxes_are_read_without_images_and_without_their_names(tmp_path: Path) -> None:
    content = changed("images.0.file_name", "../../../etc/passwd")
    del content["images"][1]["file_name"]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    (size, truth), (other, empty) = read_boxes(path, classes=("x", "dog", "cat"))
    assert (size, other) == ((20, 40), (30, 10))
    assert truth["boxes"].tolist() == [[1, 2, 4, 6], [30, 10, 40, 20]]
    assert truth["labels"].tolist() == [1, 2]
    assert truth["iscrowd"].tolist() == [False, True]
    assert empty["boxes"].shape == (0, 4)
    path.write_text(json.dumps(changed("annotations", ...)))
    assert read_boxes(path) == []
    path.write_text(json.dumps(changed("images.1.width", ...)))
    with pytest.raises(InputError, match=r"images\[1\].*missing are \['width'\]"):
        read_boxes(path)


def test_supercategories_go_by_label(folder: Path) -> None:
    assert read(folder, GOOD).supercategories == {}
    categories = [
        {"id": 90, "name": "dog", "supercategory": "animal"},
        {"id": 3, "name": "cat", "supercategory": " animal "},
        {"id": 5, "name": "idle", "supercategory": "none"},  # as Roboflow writes it
        {"id": 6, "name": "sofa", "supercategory": None},
    ]
    content = {**GOOD, "categories": categories}
    assert read(folder, content).supercategories == {0: "animal", 3: "animal"}
    assert read(folder, content, classes=("dog", "cat")).supercategories == {0: "animal", 1: "animal"}
