"""Noise of sensors: Gaussian, of photons, of dead pixels."""

from __future__ import annotations

import numpy as np

from detkd.evaluation.corruptions.pixels import Pixels, to_uint8


def gaussian_noise(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Add normal noise of standard deviation 0.08 to 0.38 (of an image in [0, 1]) to each value."""
    std = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    values = rng.standard_normal(image.shape, dtype=np.float32)
    values *= np.float32(255 * std)
    values += image
    return to_uint8(values)


def shot_noise(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Count photons: each value becomes a Poisson variable of its mean, where white is 60 to 3 photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    counts = rng.poisson(image * (photons / 255))
    return to_uint8(counts.astype(np.float32) * np.float32(255 / photons))


def impulse_noise(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Set 3 % to 27 % of the values (of each channel by itself) to 0 or 255, both as likely."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    chance = rng.random(image.shape, dtype=np.float32)
    changed = image.copy()
    changed[chance < amount / 2] = 0
    changed[chance > 1 - amount / 2] = 255
    return changed
