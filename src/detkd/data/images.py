"""Read an image file of unknown origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detkd.errors import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000
# what PIL may decode; its other formats are rare, and one of them (EPS) starts a program
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # tag of EXIF
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    Args:
        size: (height, width) that the annotations refer to, if known.

    The orientation in EXIF is applied, except where it swaps the sides and ``size`` is that of the stored pixels: then the boxes
    were drawn on those. Grey and palette images become RGB; transparent ones are laid over white; 16-bit values are scaled to
    8 bit. The first frame of an animation counts.

    Raises InputError naming the file when it is missing, corrupt, truncated, of more than ``MAX_PIXELS`` pixels, of another format
    than those in ``SUFFIXES``, or holds real or 32-bit numbers.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: expected at most {MAX_PIXELS} pixels, found {image.width} x {image.height}")
            orientation = _orientation(image)
            stored = (image.height, image.width)
            rgb = _to_rgb(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected an image, found no such file") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise InputError(
            f"{path}: expected an image that can be read, but it is damaged or of another kind: {error}"
        ) from error
    if orientation >= 5 and size == stored and size != stored[::-1]:
        return rgb
    return rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb


def _orientation(image: Image.Image) -> int:
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata over sound pixels
        return 1
    return value if value in _TRANSPOSE else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("real numbers where 8 or 16 bits a channel were expected")
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"))  # (H, W)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit numbers where 8 or 16 bits a channel were expected")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        if image.mode == "LAB":
            raise ValueError("the colour space LAB where RGB or grey was expected")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
