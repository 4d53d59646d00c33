"""Fifteen common corruptions of images (Hendrycks and Dietterich, ICLR 2019), for images of any size (Michaelis et al., 2019).

Each is a pure function of an 8-bit RGB image, a severity and a random generator. docs/methods/robustness.md has their definitions
and where they depart from the published ones.
"""

from __future__ import annotations

import hashlib

import numpy as np

from detkd.errors import InputError
from detkd.evaluation.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from detkd.evaluation.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from detkd.evaluation.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from detkd.evaluation.corruptions.pixels import Corruption, Pixels
from detkd.evaluation.corruptions.weather import brightness, fog, frost, snow

GROUPS: dict[str, tuple[Corruption, ...]] = {
    "noise": (gaussian_noise, shot_noise, impulse_noise),
    "blur": (defocus_blur, glass_blur, motion_blur, zoom_blur),
    "weather": (snow, frost, fog, brightness),
    "digital": (contrast, elastic_transform, pixelate, jpeg_compression),
}
CORRUPTIONS: dict[str, Corruption] = {function.__name__: function for group in GROUPS.values() for function in group}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image: Pixels, name: str, severity: int, *, seed: int = 0, image_id: int = 0) -> Pixels:
    """Corrupt an image.

    Args:
        image: (H, W, 3) uint8 RGB of any size, left as it is; grey images have three equal channels.
        name: one of ``CORRUPTIONS``. severity: from 1 to 5.
        seed, image_id: what is drawn is a function of (seed, name, severity, image_id) alone.

    Returns:
        (H, W, 3) uint8, what stood at a place stays there to within a few pixels, so boxes stay too.

    Raises InputError for an unknown name or severity, ValueError for another shape or dtype.
    """
    check(name, severity)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return CORRUPTIONS[name](image, severity, generator(seed, name, severity, image_id))


def check(name: str, severity: int) -> None:
    """Raise InputError for an unknown name or severity."""
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise InputError(f"corruptions.names: expected some of {', '.join(CORRUPTIONS)}, found {name!r}")
    if type(severity) is not int or severity not in SEVERITIES:
        raise InputError(f"corruptions.severities: expected some of {', '.join(map(str, SEVERITIES))}, found {severity!r}")


def generator(seed: int, name: str, severity: int, image_id: int) -> np.random.Generator:
    """The random numbers of one corruption of one image."""
    digest = hashlib.sha256(f"{seed} {name} {severity} {image_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
