"""Weather: snow, frost on the pane, fog, bright light."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from detkd.evaluation.corruptions.filters import correlate, streak
from detkd.evaluation.corruptions.ice import ice
from detkd.evaluation.corruptions.pixels import Pixels, to_uint8
from detkd.evaluation.corruptions.plasma import plasma

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def snow(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Whiten the image and let flakes fall: thresholded noise, enlarged, blurred along its fall, and once more turned by 180 degrees."""
    mean, std, size, threshold, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width = image.shape[:2]
    flakes = rng.standard_normal((math.ceil(height / size), math.ceil(width / size)), dtype=np.float32) * std + mean
    picture = Image.fromarray(flakes.astype(np.float32))
    layer = np.array(picture.resize((width, height), Image.Resampling.BILINEAR, box=(0, 0, width / size, height / size)))
    layer[layer < threshold] = 0
    layer = correlate(layer.clip(0, 1), streak(2 * radius + 1, sigma, rng.uniform(-135, -45)), "edge")
    layer = 255 * (layer + layer[::-1, ::-1])

    values = image.astype(np.float32)
    white = 1.5 * (values @ np.array(LUMA, np.float32)) + 127.5  # (H, W)
    values = kept * values + (1 - kept) * np.maximum(values, white[..., None])
    values += layer[..., None]
    return to_uint8(values)


def frost(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Lay ice over a darkened image."""
    kept, added = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    values = image.astype(np.float32)
    values *= kept
    values += np.float32(added) * ice(image.shape[0], image.shape[1], rng)
    return to_uint8(values)


def fog(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Add a plasma fractal, 1.5 to 3 times as bright as white, and scale back to the brightest value that there was."""
    thickness, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    brightest = float(image.max()) / 255
    cloud = plasma(image.shape[0], image.shape[1], decay, rng)
    values = image + np.float32(255 * thickness) * cloud[..., None]
    values *= np.float32(brightest / (brightest + thickness))
    return to_uint8(values)


def brightness(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Add 0.1 to 0.5 to the value of HSV (of an image in [0, 1]), up to 1; hue and saturation stay."""
    added = 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = image.max(-1, keepdims=True).astype(np.float32)  # (H, W, 1)
    brighter = np.minimum(value + np.float32(added), 255)
    # with hue and saturation fixed, colours are proportional to the value; black has neither and becomes grey
    return to_uint8(np.where(value > 0, image * (brighter / np.maximum(value, 1)), brighter))
