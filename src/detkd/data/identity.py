"""What tells one data set from another, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detkd.classes import canonical
from detkd.disk import sha256_of


def truths_sha256(truths: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """Hexadecimal hash of what detections are scored against: scores with the same hash can be compared.

    Args:
        truths: one an image, in order: boxes (n, 4) xyxy, labels (n,) and, where there are, iscrowd (n,) and ignore (n,).
        classes: what labels mean. Spellings of one COCO class are one, and the order of classes does not count.

    Boxes count to 1/1000 pixel.
    """
    names = [canonical(name) for name in classes]
    digest = hashlib.sha256()
    for truth in truths:
        n = len(truth["labels"])
        flags = [truth[key].tolist() if key in truth else [False] * n for key in ("iscrowd", "ignore")]
        boxes = ([round(1000 * v) for v in box] for box in truth["boxes"].tolist())
        objects = zip(boxes, (names[label] for label in truth["labels"].tolist()), *(map(bool, of) for of in flags))
        digest.update(f"{list(objects)!r}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def set_sha256(root: str | Path, annotations: str | Path | None = None) -> str | None:
    """Hexadecimal checksum of the file that describes a set; None where no file does.

    It is the manifest of a store, which has the checksums of all its images, else the json of ``annotations`` (relative to ``root``), else
    instances.json.
    """
    root = Path(root)
    names = ["manifest.json", *([] if annotations is None else [annotations]), "instances.json"]
    found = next((root / name for name in names if (root / name).is_file()), None)
    return None if found is None else sha256_of(found)
