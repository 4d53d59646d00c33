"""Images from files, small enough for a page."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from detkd.data.images import read_image
from detkd.disk import parse_json
from detkd.errors import InputError
from detkd.runtime.report.blocks import Box, Gallery, Picture
from detkd.runtime.report.runs import resolved

THUMBNAIL, FIGURE = 192, 1400  # px, longest side


def picture(path: Path, caption: str, side: int, boxes: Sequence[Box] = ()) -> Picture:
    """An image file, encoded anew with its longest side at most ``side`` pixels; boxes are in the file's own.

    Photographs become JPEG; what has few colours (a diagram) stays sharp as PNG where that is no larger. Raises InputError for a file that is no image.
    """
    image = read_image(path)
    scale = min(1.0, side / max(image.size))
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    encoded = [("image/jpeg", _encode(image, "JPEG"))]
    if side > THUMBNAIL:
        few = image.quantize(256, dither=Image.Dither.NONE)
        encoded.insert(0, ("image/png", _encode(few, "PNG")))
    media, content = min(encoded, key=lambda of: len(of[1]))
    scaled = tuple(Box(tuple(v * scale for v in box.xyxy), box.name) for box in boxes)  # type: ignore[arg-type]
    return Picture(caption, media, content, image.size, scaled)


def set_gallery(root: Path, count: int) -> Gallery | None:
    """Images of a complete set with their boxes, evenly spaced, and the link to its gallery; None where its index is not written yet.

    Raises InputError for a damaged index or image.
    """
    path = root / "instances.json"
    if not path.is_file() or count < 1:
        return None
    instances = parse_json(path.read_bytes(), path)
    try:
        images: list[dict[str, Any]] = instances["images"]
        names = {category["id"]: str(category["name"]) for category in instances["categories"]}
        chosen = images if len(images) <= count else [images[i * len(images) // count] for i in range(count)]
        boxes: dict[Any, list[Box]] = {image["id"]: [] for image in chosen}
        for annotation in instances["annotations"]:
            if annotation["image_id"] in boxes:
                boxes[annotation["image_id"]].append(_box(annotation["bbox"], names[annotation["category_id"]]))
        files = [(str(image["file_name"]), boxes[image["id"]]) for image in chosen]
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise InputError(f"{path}: expected a COCO json, found {type(error).__name__}: {error}") from None
    pictures = tuple(picture(_inside(root, name), name, THUMBNAIL, of) for name, of in files)
    page = root / "gallery" / "index.html"
    note = f"{len(pictures)} of {len(images)} images, evenly spaced"
    return Gallery("Images", pictures, note, page if page.is_file() else root)


def figures(folder: Path, names: Sequence[str]) -> Gallery:
    """Picture files of a folder. Raises InputError for one that is no image."""
    return Gallery("Figures", tuple(picture(folder / name, name, FIGURE) for name in names))


def _box(bbox: Sequence[float], name: str) -> Box:
    x, y, width, height = map(float, bbox)
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"a box of {list(bbox)}")
    return Box((x, y, x + width, y + height), name)


def _inside(root: Path, name: str) -> Path:
    path = resolved(root / name)
    if path is None or not path.is_relative_to(root.resolve()):
        raise InputError(f"{root / 'instances.json'}: expected images inside of the folder, found {name!r}")
    return path


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=85, optimize=True)
    return buffer.getvalue()
