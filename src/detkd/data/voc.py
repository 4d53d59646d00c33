"""Pascal VOC's folders and XML files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from detkd.data import checks
from detkd.data.annotations import Annotations
from detkd.data.checks import OnProblem
from detkd.data.named_boxes import NamedBox, NamedImage, to_annotations
from detkd.errors import InputError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
DEFAULT_SPLITS = {"train": "trainval", "score": "test"}
MAX_BYTES = 10_000_000  # of an XML file; VOC's have a few thousand


def read_voc(
    root: str | Path,
    split: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    *,
    role: Literal["train", "score"] = "train",
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
    proxy: bool = False,
) -> Annotations:
    """Read VOC2007, VOC2012 or what is laid out like them.

    Args:
        root: VOCdevkit, the folder that holds it, or one year's folder with Annotations/, JPEGImages/ and ImageSets/Main/.
        split: a list in ImageSets/Main, like "trainval", of every year that has it, or "VOC2007/trainval" of that folder; or several.
            None: "trainval", to score on "test"; in a year's folder without ImageSets every XML file.
        classes: names in label order; None: VOC's 20.
        on_unknown, invalid_boxes, proxy: see :func:`~detkd.data.named_boxes.to_annotations`.

    VOC counts pixels from 1 and the last one in: a box is (xmin - 1, ymin - 1, xmax, ymax) here. Boxes marked difficult have ``ignore``
    set. Images are named by <filename>; <size> is what their boxes refer to.

    Raises InputError naming file and element for what is missing, malformed or leaves its folder, for images that are listed twice, and for
    XML with a document type declaration, which could define entities that grow or read other files.
    """
    root = Path(root)
    checks.check_folder(root)
    images: dict[Path, NamedImage] = {}
    for path, listed in _annotation_files(root, split, DEFAULT_SPLITS[role]):
        if path in images:
            raise InputError(f"{listed}: expected splits without common images, found {path.stem} again")
        images[path] = read_xml(path)
    return to_annotations(
        str(root), list(images.values()), CLASSES, classes, on_unknown=on_unknown, invalid_boxes=invalid_boxes, proxy=proxy
    )


def read_xml(path: Path) -> NamedImage:
    """One XML file of Annotations/; its image lies in JPEGImages/ beside that, or in images/."""
    year = path.parents[1]
    annotation = parse_xml(path)
    if annotation.tag != "annotation":
        raise InputError(f"{path}: expected the element <annotation>, found <{annotation.tag}>")
    folders = [folder.resolve() for name in ("JPEGImages", "images") if (folder := year / name).is_dir()]
    if not folders:
        raise InputError(f"{year}: expected the images of Annotations/ in JPEGImages/, found no such folder")
    file = checks.find_image(_text(annotation, "filename", str(path)), f"{path}: <filename>", folders)
    height, width = (_number(annotation, f"size/{side}", str(path)) for side in ("height", "width"))
    size = checks.image_size(height, width, f"{path}: <size>")
    objects = enumerate(annotation.findall("object"))
    return NamedImage(file, size, [_box(element, f"{path}: object[{i}]") for i, element in objects])


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse a file without entities: at most ``MAX_BYTES`` of UTF-8 without a document type declaration; InputError for all else."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: expected an XML file, found none that can be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: expected at most {MAX_BYTES} bytes of XML, found more")
    try:
        text = content.decode("utf-8")
        if "\0" in text:
            raise ValueError("it has a zero byte")  # as UTF-16 has; in it a declaration would not be found
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(f"{path}: expected XML without a document type declaration, found one")
        return ElementTree.fromstring(content, ElementTree.XMLParser(encoding="utf-8"))  # whatever encoding the file declares
    except InputError:
        raise
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: expected well-formed XML in UTF-8, but it does not parse: {error}") from error


def _box(element: ElementTree.Element, where: str) -> NamedBox:
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise InputError(f"{where}: <difficult>: expected 0 or 1, got {checks.short(difficult)}")
    return NamedBox(where, _text(element, "name", where), (xmin - 1, ymin - 1, xmax, ymax), difficult == "1")


def _text(element: ElementTree.Element, name: str, where: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise InputError(f"{where}: expected the element <{name}> with a text, found none")
    return text


def _number(element: ElementTree.Element, name: str, where: str) -> float:
    text = _text(element, name, where)
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, flags=re.ASCII):
        raise InputError(f"{where}: <{name}>: expected a number, got {checks.short(text)}")
    return float(text)


def _annotation_files(root: Path, split: str | Sequence[str] | None, default: str) -> list[tuple[Path, Path]]:
    """The XML files of the splits in order, each with the file that lists it."""
    years = _years(root)
    if split is None and not any((year / "ImageSets").is_dir() for year in years):
        return [(path, year) for year in years for path in sorted((year / "Annotations").glob("*.xml"))]
    names = [split] if isinstance(split, str) else list(split) if split is not None else [default]
    lists = [path for name in names for path in _lists(root, years, name)]
    return [(path.parents[2] / "Annotations" / f"{image}.xml", path) for path in lists for image in _listed(path)]


def _years(root: Path) -> list[Path]:
    if (root / "Annotations").is_dir():
        return [root]
    kit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    if years := sorted(path for path in kit.glob("*") if (path / "Annotations").is_dir()):
        return years
    there = ", ".join(sorted(path.name for path in kit.iterdir())[:10]) or "nothing"
    raise InputError(f"{kit}: expected Annotations/, or folders like VOC2007/ with it, found {there}")


def _lists(root: Path, years: Sequence[Path], split: str) -> list[Path]:
    """The files that list a split, one a year."""
    folder, _, name = split.rpartition("/")
    if not re.fullmatch(r"\w[\w.-]*", name) or ".." in split:
        raise InputError(
            f"split: expected the name of a list in ImageSets/Main, like trainval or VOC2007/trainval, got {split!r}"
        )
    files = [year / "ImageSets/Main" / f"{name}.txt" for year in years if folder in ("", year.name)]
    if found := [path for path in files if path.is_file()]:
        return found
    there = [
        f"{year.name}/{path.stem}"
        for year in years
        for path in sorted((year / "ImageSets/Main").glob("*.txt"))
        if not re.fullmatch(rf"({'|'.join(CLASSES)})_.*", path.stem)
    ]
    raise InputError(f"{root}: split: expected one of {checks.some(there)}, got {split!r}")


def _listed(path: Path) -> list[str]:
    try:
        images = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a list of images, one a line, but it cannot be read: {error}") from error
    for image in images:
        if not re.fullmatch(r"[^/\\\0]+", image) or image.startswith("."):
            raise InputError(
                f"{path}: expected the name of an image on each line, without its suffix, got {checks.short(image)}"
            )
    return images
