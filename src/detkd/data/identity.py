"""What tells one data set from another, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detkd.boxes import area_xyxy
from detkd.classes import canonical
from detkd.data.annotations import Record
from detkd.disk import sha256_of


def truths_sha256(truths: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Hexadecimal hash of what detections are scored against: scores with the same hash can be compared.

    Args:
        truths: one an image, in order: boxes (n, 4) xyxy, labels (n,) and, where there are, iscrowd (n,), ignore (n,) and area (n,), else
            no box is either and the area is the box's.
        classes: what labels mean. Spellings of one COCO class are one, and the order of classes does not count.

    Boxes count to 1/1000 pixel, areas to 1/10 square pixel.
    """
    names = [canonical(name) for name in classes]
    digest = hashlib.sha256()
    for truth in truths:
        n = len(truth["labels"])
        flags = [truth[key].tolist() if key in truth else [False] * n for key in ("iscrowd", "ignore")]
        areas = (truth["area"] if "area" in truth else area_xyxy(truth["boxes"])).tolist()
        boxes = ([round(1000 * v) for v in box] for box in truth["boxes"].tolist())
        labels = (names[label] for label in truth["labels"].tolist())
        objects = zip(boxes, labels, *(map(bool, of) for of in flags), (round(10 * area) for area in areas))
        digest.update(f"{list(objects)!r}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def images_sha256(records: Iterable[Record]) -> str:
    """Hexadecimal hash of which image files a detector is run on, in any order: ids, and names and sizes of the files in bytes.

    The files are not read, so other pixels in a file of the same name and size are not noticed.
    """
    files = [(r.image_id, r.path.name, r.path.stat().st_size if r.path.is_file() else -1) for r in records]
    return hashlib.sha256(repr(sorted(files)).encode("utf-8", "backslashreplace")).hexdigest()


def set_sha256(root: str | Path, annotations: str | Path | None = None) -> str | None:
    """Hexadecimal checksum of the file that describes a set; None where no file does.

    It is the manifest of a store, which has the checksums of all its images, else the json of ``annotations`` (relative to ``root``), else
    instances.json.
    """
    root = Path(root)
    names = ["manifest.json", *([] if annotations is None else [annotations]), "instances.json"]
    found = next((root / name for name in names if (root / name).is_file()), None)
    return None if found is None else sha256_of(found)
