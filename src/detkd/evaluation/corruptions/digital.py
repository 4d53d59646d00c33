"""What happens to an image in a computer: contrast, elastic distortion, large pixels, compression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from detkd.evaluation.corruptions.filters import gaussian_blur
from detkd.evaluation.corruptions.pixels import Floats, Pixels, to_uint8


def contrast(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Bring each channel towards its mean over the image: 40 % to 5 % of the difference are left."""
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = image.mean((0, 1), dtype=np.float64).astype(np.float32)  # (3,)
    return to_uint8(image * np.float32(kept) + np.float32(1 - kept) * mean)


def elastic_transform(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Move each pixel by a smooth random field: noise up to 0.5 % of the height, smoothed over 1 % of each side, times 12.5 to 30."""
    gain = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
    height, width = image.shape[:2]
    noise = rng.random((2, height, width), dtype=np.float32)
    fields = [gaussian_blur(one * 2 - 1, (0.01 * height, 0.01 * width), 3, "symmetric") for one in noise]
    rows, columns = (field * np.float32(gain * 0.005 * height) for field in fields)
    return to_uint8(_warp(image, rows, columns))


def _warp(image: Pixels, rows: Floats, columns: Floats) -> Floats:
    """Look each pixel up elsewhere, bilinearly; the image is mirrored at its borders.

    rows, columns: (H, W) displacements in pixels, of where to look.
    """
    height, width = image.shape[:2]
    reach = 1 + int(np.ceil(max(np.abs(rows).max(), np.abs(columns).max())))
    padded = np.pad(image, [(reach, reach), (reach, reach), (0, 0)], mode="symmetric")
    stride = padded.shape[1]
    floor_y, floor_x = np.floor(rows), np.floor(columns)
    down, right = (rows - floor_y).reshape(-1, 1), (columns - floor_x).reshape(-1, 1)
    start_y = floor_y.astype(np.int32) + np.arange(reach, reach + height, dtype=np.int32)[:, None]
    start_x = floor_x.astype(np.int32) + np.arange(reach, reach + width, dtype=np.int32)
    corner = (start_y * stride + start_x).reshape(-1)  # (H*W,)
    pixels = padded.reshape(-1, 3)
    upper, lower = (
        (1 - right) * pixels[corner + offset] + right * pixels[corner + offset + 1] for offset in (0, stride)
    )  # (H*W, 3) each
    return ((1 - down) * upper + down * lower).reshape(height, width, 3)


def pixelate(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Shrink to 60 % to 25 % of each side by averaging, and enlarge by repeating pixels."""
    scale = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def jpeg_compression(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Compress and decompress as JPEG of quality 25 to 7."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))
