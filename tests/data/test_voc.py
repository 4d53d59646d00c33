"""VOC's folders and XML: read as meant, or refused with the file and element named."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkd.data.coco import CocoDataset
from detkd.data.formats import open_dataset
from detkd.data.voc import CLASSES, parse_xml, read_voc
from detkd.detectors.torchvision.labels import COCO_CLASSES
from detkd.errors import InputError

SHARED = Path(os.environ.get("DETKD_SHARED", "../shared"))
BOX = ("dog", (1, 1, 40, 20), 0)  # the whole image


def xml(name: str, objects: list[tuple[str, tuple[Any, ...], int]], size: tuple[int, int] = (40, 20)) -> str:
    """An annotation with class, (xmin, ymin, xmax, ymax) and difficult of each object; size is (width, height)."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    return "".join(
        [
            f"<annotation><folder>VOC2007</folder><filename>{escape(name)}</filename>",
            f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
            *(
                f"<object><name>{escape(label)}</name><difficult>{difficult}</difficult><bndbox>"
                + "".join(f"<{key}>{value}</{key}>" for key, value in zip(corners, box))
                + "</bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
                for label, box, difficult in objects
            ),
            "</annotation>",
        ]
    )


def put(year: Path, split: str, images: dict[str, list[tuple[str, tuple[Any, ...], int]]]) -> None:
    """Add images of 40 x 20 pixels and the list that names them to a year's folder."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    for name, objects in images.items():
        Image.new("RGB", (40, 20)).save(year / "JPEGImages" / f"{name}.jpg")
        (year / "Annotations" / f"{name}.xml").write_text(xml(f"{name}.jpg", objects))
    (year / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    put(
        tmp_path / "VOC2007", "trainval", {"000005": [("dog", (3, 4, 20, 12), 0), ("sofa", (10.5, 1, 40, 20), 1)], "000007": []}
    )
    put(tmp_path / "VOC2007", "test", {"000001": [BOX]})
    put(tmp_path / "VOC2012", "trainval", {"2008_000002": [("tvmonitor", (1, 1, 1, 1), 0)]})
    return tmp_path


def test_reads_what_is_meant(kit: Path) -> None:
    read = read_voc(kit)
    assert read.classes == CLASSES
    assert len(CLASSES) == 20
    assert list(CLASSES) == sorted(CLASSES)
    assert read.category_ids == {i: i + 1 for i in range(20)}
    assert [record.path.name for record in read.records] == ["000005.jpg", "000007.jpg", "2008_000002.jpg"]
    assert [record.image_id for record in read.records] == [1, 2, 3]
    first, empty, pixel = (record.truth for record in read.records)
    assert first is not None
    assert empty is not None
    assert pixel is not None
    assert first["boxes"].tolist() == [[2, 3, 20, 12], [9.5, 0, 40, 20]]  # 1-based and inclusive to 0-based and exclusive
    assert first["labels"].tolist() == [CLASSES.index("dog"), CLASSES.index("sofa")]
    assert first["ignore"].tolist() == [False, True]
    assert first["area"].tolist() == [18 * 9, 30.5 * 20]
    assert empty["boxes"].shape == (0, 4)
    assert pixel["boxes"].tolist() == [[0, 0, 1, 1]]


def names(kit: Path, **options: Any) -> list[str]:
    return [record.path.stem for record in read_voc(kit, **options).records]


def test_splits(kit: Path) -> None:
    assert names(kit, role="score") == ["000001"]
    assert names(kit, split="VOC2012/trainval") == ["2008_000002"]
    assert names(kit, split=["VOC2012/trainval", "test"]) == ["2008_000002", "000001"]
    assert names(kit / "VOC2007", split="test") == ["000001"]
    assert names(kit / "VOC2007", role="train") == ["000005", "000007"]
    (kit / "kit").mkdir()
    shutil.move(kit / "VOC2007", kit / "kit/VOCdevkit/VOC2007")
    assert names(kit / "kit", split="test") == ["000001"]
    shutil.rmtree(kit / "kit/VOCdevkit/VOC2007/ImageSets")
    assert names(kit / "kit") == names(kit / "kit", role="score") == ["000001", "000005", "000007"]


def test_classes_of_a_detector(kit: Path) -> None:
    read = read_voc(kit, classes=COCO_CLASSES)
    truth = read.records[0].truth
    assert truth is not None
    assert [COCO_CLASSES[i] for i in truth["labels"].tolist()] == ["dog", "couch"]
    assert read.category_ids[COCO_CLASSES.index("tv")] == 20
    assert len(read.category_ids) == 20
    with pytest.raises(
        InputError, match=r"class names among the classes \['dog'\], found also \['sofa', 'tvmonitor'\]; on_unknown"
    ):
        read_voc(kit, classes=["dog"])
    with pytest.warns(UserWarning, match="their boxes are left out"):
        read = read_voc(kit, classes=["dog"], on_unknown="drop")
    assert [len(record.truth["labels"]) for record in read.records if record.truth] == [1, 0, 0]
    with pytest.raises(InputError, match="none that is among them"):
        read_voc(kit, classes=["circle"], on_unknown="drop")


def test_difficult_objects_are_no_targets_but_stay_in_the_truth(kit: Path) -> None:
    for difficult, count in ((False, 1), (True, 2)):
        data = open_dataset(kit, "voc", image_size=(20, 40), resize="stretch", difficult=difficult)
        target = data[0]["target"]
        assert target is not None
        assert len(target["boxes"]) == count
        assert data.ground_truth(0)["ignore"].tolist() == [False, True]


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(kit: Path) -> None:
        text = (kit / file).read_text()
        assert old in text
        (kit / file).write_text(text.replace(old, new, 1))

    return change


XML = "VOC2007/Annotations/000005.xml"
LIST = "VOC2007/ImageSets/Main/trainval.txt"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "expected a folder of images, found nothing"),
    "no year": (
        lambda kit: [shutil.rmtree(p / "Annotations") for p in kit.iterdir()],
        "expected Annotations/, or folders like",
    ),
    "no images": (lambda kit: shutil.rmtree(kit / "VOC2007/JPEGImages"), r"VOC2007: expected the images of Annotations/"),
    "no image": (lambda kit: (kit / "VOC2007/JPEGImages/000005.jpg").unlink(), r"000005.xml: <filename>: expected an image"),
    "no xml": (lambda kit: (kit / XML).unlink(), r"000005.xml: expected an XML file, found none"),
    "not xml": (lambda kit: (kit / XML).write_text("<annotation>"), r"000005.xml: expected well-formed XML in UTF-8"),
    "another xml": (lambda kit: (kit / XML).write_text("<svg/>"), r"expected the element <annotation>, found <svg>"),
    "utf-16": (lambda kit: (kit / XML).write_bytes("<annotation/>".encode("utf-16")), "expected well-formed XML in UTF-8"),
    "large": (lambda kit: (kit / XML).write_bytes(b" " * 10_000_001), "expected at most 10000000 bytes"),
    "no filename": (edit(XML, "<filename>000005.jpg</filename>", ""), r"000005.xml: expected the element <filename>"),
    "filename leaves": (
        edit(XML, "000005.jpg", "../../VOC2012/JPEGImages/2008_000002.jpg"),
        "expected a path below the data folder",
    ),
    "filename is absolute": (edit(XML, "000005.jpg", "/etc/passwd"), "<filename>: expected a path below the data folder"),
    "no size": (edit(XML, "<width>40</width>", ""), r"000005.xml: expected the element <size/width>"),
    "size of zero": (edit(XML, "<width>40<", "<width>0<"), "<size>: expected width and height in pixels, got 0 and 20"),
    "size of half": (edit(XML, "<width>40<", "<width>40.5<"), "<size>.width: expected a whole number"),
    "no name": (edit(XML, "<name>dog</name>", ""), r"000005.xml: object\[0\]: expected the element <name>"),
    "no corner": (edit(XML, "<ymax>12</ymax>", ""), r"object\[0\]: expected the element <bndbox/ymax>"),
    "no number": (edit(XML, "<ymax>12<", "<ymax>1_2<"), r"object\[0\]: <bndbox/ymax>: expected a number, got '1_2'"),
    "not finite": (edit(XML, "<ymax>12<", "<ymax>nan<"), r"object\[0\]: <bndbox/ymax>: expected a number, got 'nan'"),
    "inside out": (
        edit(XML, "<ymax>12<", "<ymax>3<"),
        r"object\[0\]: expected a box of positive extent .* got \[2.0, 3.0, 20.0, 3.0\]",
    ),
    "outside": (
        edit(XML, "<xmin>3<", "<xmin>41<"),
        r"object\[0\]: expected a box of positive extent inside an image of 40 x 20",
    ),
    "difficult": (edit(XML, "<difficult>0<", "<difficult>yes<"), r"object\[0\]: <difficult>: expected 0 or 1, got 'yes'"),
    "unknown class": (edit(XML, "dog", "dodo"), r"found also \['dodo'\]; on_unknown=drop"),
    "list leaves": (edit(LIST, "000005", "../../x"), r"trainval.txt: expected the name of an image on each line"),
    "list is binary": (lambda kit: (kit / LIST).write_bytes(b"\xff\xfe"), r"trainval.txt: expected a list of images"),
    "twice": (edit(LIST, "000007", "000005"), "expected splits without common images, found 000005 again"),
    "empty": (
        lambda kit: [(y / "ImageSets/Main/trainval.txt").write_text("") for y in kit.iterdir()],
        "expected images, found none",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_named(kit: Path, fault: str) -> None:
    change, message = BAD[fault]
    change(kit)
    with pytest.raises(InputError, match=message):
        open_dataset(kit, "voc", image_size=(20, 40), resize="stretch")


@pytest.mark.parametrize("split", ["val", "VOC2012/test", "../trainval", "VOC2007/../VOC2007/trainval", "", "VOC2007/"])
def test_a_split_that_is_not_there_is_named_with_those_that_are(kit: Path, split: str) -> None:
    put(kit / "VOC2007", "dog_train", {})
    with pytest.raises(InputError, match="split: expected") as error:
        read_voc(kit, split=split)
    assert "dog_train" not in str(error.value)


def test_boxes_without_extent_can_be_dropped(kit: Path) -> None:
    edit(XML, "<ymax>12<", "<ymax>3<")(kit)
    with pytest.warns(UserWarning, match="left out 1 boxes of no extent"):
        read = read_voc(kit, invalid_boxes="drop")
    truth = read.records[0].truth
    assert truth is not None
    assert truth["labels"].tolist() == [CLASSES.index("sofa")]


def test_a_link_out_of_the_folder_is_refused(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    Image.new("RGB", (40, 20)).save(outside)
    image = kit / "VOC2007/JPEGImages/000005.jpg"
    image.unlink()
    image.symlink_to(outside)
    with pytest.raises(InputError, match="a link that leaves it"):
        read_voc(kit)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp037"])
def test_no_entity_reaches_the_parser(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: bytes, parser: Any) -> None:
        raise AssertionError("the parser was called")

    path = tmp_path / "bomb.xml"
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(10))
    content = f'<?xml version="1.0" encoding="{encoding}"?>\n<!DOCTYPE a [{entities}<!ENTITY f SYSTEM "file:///etc/passwd">]><a>&e9;&f;</a>'
    head, _, rest = content.partition("\n")
    path.write_bytes(content.encode(encoding) if encoding != "cp037" else head.encode() + b"\n" + rest.encode(encoding))
    monkeypatch.setattr(ElementTree, "fromstring", fail)
    with pytest.raises(InputError, match=r"without a document type declaration|well-formed XML in UTF-8"):
        parse_xml(path)


NAMES = st.sampled_from(CLASSES)
OBJECTS = st.lists(
    st.tuples(
        NAMES, st.tuples(st.integers(1, 30), st.integers(1, 15), st.integers(0, 10), st.integers(0, 5)), st.integers(0, 1)
    ),
    max_size=4,
)
FUZZ = [HealthCheck.function_scoped_fixture]


@settings(max_examples=100, deadline=None, suppress_health_check=FUZZ)
@given(objects=OBJECTS)
def test_any_boxes_come_back(kit: Path, objects: list[tuple[str, tuple[int, ...], int]]) -> None:
    given_boxes = [(name, (x, y, x + w, y + h), difficult) for name, (x, y, w, h), difficult in objects]
    (kit / XML).write_text(xml("000005.jpg", given_boxes))
    truth = read_voc(kit).records[0].truth
    assert truth is not None
    assert truth["boxes"].tolist() == [[x1 - 1, y1 - 1, x2, y2] for _, (x1, y1, x2, y2), _ in given_boxes]
    assert [CLASSES[i] for i in truth["labels"].tolist()] == [name for name, _, _ in given_boxes]
    assert truth["ignore"].tolist() == [bool(difficult) for _, _, difficult in given_boxes]


@settings(max_examples=200, deadline=None, suppress_health_check=FUZZ)
@given(
    start=st.integers(0, 400),
    length=st.integers(0, 40),
    put_in=st.text(max_size=12) | st.sampled_from(["</object>", "&x;", "1e999", "-0"]),
)
def test_only_input_errors_escape(kit: Path, start: int, length: int, put_in: str) -> None:
    good = xml("000005.jpg", [("dog", (3, 4, 20, 12), 0)])
    (kit / XML).write_text(good[:start] + put_in + good[start + length :], encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = read_voc(kit, invalid_boxes="drop", on_unknown="drop")
        except InputError as error:
            str(error).encode()
        else:
            assert all(bool(r.truth["boxes"].isfinite().all()) for r in read.records if r.truth)


@pytest.mark.skipif(not (SHARED / "data/voc100").is_dir(), reason="needs data/voc100 of the shared folder (DETKD_SHARED)")
def test_real_files_say_what_their_json_says() -> None:
    voc = open_dataset(SHARED / "data/voc100", "voc", classes=COCO_CLASSES, image_size=(64, 64), resize="stretch", role="score")
    coco = CocoDataset(SHARED / "data/voc100", classes=COCO_CLASSES, image_size=(64, 64), resize="stretch")
    by_name = {record.path.name: record.truth for record in coco.records}
    assert len(voc) == len(coco) == 100
    for record in voc.records:
        ours, theirs = record.truth, by_name[record.path.name]
        assert ours is not None
        assert theirs is not None
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        # whoever made the json took xmin and ymin as they are, which is a pixel too far right and down
        torch.testing.assert_close(ours["boxes"] + torch.tensor([1, 1, 0, 0]), theirs["boxes"])
    assert sum(int(voc.ground_truth(i)["ignore"].sum()) for i in range(100)) == 38
