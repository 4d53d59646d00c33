"""BDD100k's folders and label files, of 2018 and of 2020."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from detkd.data import checks
from detkd.data.annotations import Annotations
from detkd.data.checks import OnProblem
from detkd.data.named_boxes import NamedBox, NamedImage, to_annotations
from detkd.errors import InputError

CLASSES = (
    "pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "traffic light", "traffic sign",
)  # fmt: skip
# as BDD100k's own evaluation counts them: other names of a class, and what is like a class and taken for a crowd of it
SPELLINGS = {"person": "pedestrian", "motor": "motorcycle", "bike": "bicycle", "van": "car", "caravan": "car"}
IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
IMAGE_SIZE = (720, 1280)  # of all its images, (height, width); the labels do not say it
DEFAULT_SPLITS = {"train": "train", "score": "val"}


def read_bdd100k(
    root: str | Path,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    annotations: str | Path | None = None,
    role: Literal["train", "score"] = "train",
    on_unknown: OnProblem = "error",
    invalid_boxes: OnProblem = "error",
    proxy: bool = False,
) -> Annotations:
    """Read the detection labels of BDD100k.

    Args:
        root: the folder with labels/ and images/100k/<split>/, or one that holds it as bdd100k/.
        split: "train" or "val"; None: "train", to score on "val".
        annotations: the json, relative to ``root``. None: labels/det_20/det_<split>.json (2020), else
            labels/bdd100k_labels_images_<split>.json (2018).
        classes: names in label order; None: the 10 of 2020.
        on_unknown, invalid_boxes, proxy: see :func:`~detkd.data.named_boxes.to_annotations`.

    Corners are pixels that belong to the box, as in BDD100k's own evaluation: a box is (x1, y1, x2 + 1, y2 + 1) here. Names of 2018 are
    those of 2020 in another spelling. "other person", "other vehicle" and "trailer" are crowds of pedestrians, cars and trucks, as is what
    has the attribute "crowd": in scores their overlap is the part of the detection that lies inside, and they are neither hit nor miss.
    Labels that are no boxes (lanes, drivable areas) are passed over; images that the json does not name are left out, images without labels
    are not. All images are 1280 x 720 pixels.

    Raises InputError naming file and entry for what is missing, malformed or leaves its folder, and for images that are named twice.
    """
    root = Path(root)
    checks.check_folder(root)
    base = root / "bdd100k" if (root / "bdd100k").is_dir() else root
    split = DEFAULT_SPLITS[role] if split is None else split
    if not split.isidentifier():
        raise InputError(f"split: expected train or val, got {split!r}")
    path = _label_file(base, split) if annotations is None else root / annotations
    folder = base / "images/100k" / split
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the images of the split {split!r}, found no such folder")
    images: dict[Path, NamedImage] = {}
    for where, entry in checks.entries(_frames(path), f"{path}: frames", ("name",)):
        file = checks.find_image(entry["name"], f"{where}.name", [folder.resolve()])
        if file in images:
            raise InputError(f"{where}.name: expected names that differ, got {checks.short(entry['name'])} again")
        images[file] = NamedImage(file, IMAGE_SIZE, _boxes(entry.get("labels"), f"{where}.labels"))
    return to_annotations(
        str(path), list(images.values()), CLASSES, classes, on_unknown=on_unknown, invalid_boxes=invalid_boxes, proxy=proxy
    )


def _label_file(base: Path, split: str) -> Path:
    files = [base / "labels/det_20" / f"det_{split}.json", base / "labels" / f"bdd100k_labels_images_{split}.json"]
    if found := next((path for path in files if path.is_file()), None):
        return found
    there = ", ".join(path.relative_to(base).as_posix() for path in sorted(base.glob("labels/**/*.json"))) or "no json"
    raise InputError(
        f"{files[0]}: expected the labels of the split {split!r} there or at {files[1]}, found neither; labels/ has {there}"
    )


def _frames(path: Path) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: expected a json file, found none that can be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected json, but it does not parse: {error}") from error
    return content.get("frames") if isinstance(content, dict) else content


def _boxes(labels: Any, where: str) -> list[NamedBox]:
    boxes: list[NamedBox] = []
    for place, label in checks.entries([] if labels is None else labels, where, ("category",)):
        if label.get("box2d") is None and label.get("poly2d") is not None:
            continue
        corners = checks.entry(label.get("box2d"), f"{place}.box2d", ("x1", "y1", "x2", "y2"))
        for key in ("x1", "y1", "x2", "y2"):
            if not checks.is_number(corners[key]):
                raise InputError(f"{place}.box2d.{key}: expected a number, got {checks.short(corners[key])}")
        x1, y1, x2, y2 = (checks.to_float(corners[key]) for key in ("x1", "y1", "x2", "y2"))
        name = label["category"]
        if not isinstance(name, str) or not name:
            raise InputError(f"{place}.category: expected a name, got {checks.short(name)}")
        name = SPELLINGS.get(name, name)
        crowd = _is_crowd(label.get("attributes"), f"{place}.attributes") or name in IGNORED
        boxes.append(NamedBox(f"{place}.box2d", IGNORED.get(name, name), (x1, y1, x2 + 1, y2 + 1), iscrowd=crowd))
    return boxes


def _is_crowd(attributes: Any, where: str) -> bool:
    crowd = None if attributes is None else checks.entry(attributes, where, ()).get("crowd")
    if crowd not in (None, False, True):
        raise InputError(f"{where}.crowd: expected true or false, got {checks.short(crowd)}")
    return bool(crowd)
