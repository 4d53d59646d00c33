"""A detector and where its weights and class names come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from detkd.detectors.darknet.detector import DarknetDetector
from detkd.detectors.files import File, locate, read_names
from detkd.detectors.protocol import Detector
from detkd.errors import InputError


def pretrained(
    detector: Callable[..., Detector],
    classes: Sequence[str] | File | None = None,
    weights: File | str | None = None,
    seed: int = 0,
) -> Detector:
    """Build a detector and fill it.

    Args:
        detector: the architecture, which takes ``classes``.
        classes: names, or the .names file that has them; None leaves them to the architecture.
        weights: a .weights file of darknet; None leaves the random start, drawn with ``seed`` whatever was drawn before.

    Raises InputError when a file is missing or does not fit.
    """
    if isinstance(classes, (File, str)):
        classes = read_names(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = detector() if classes is None else detector(classes=tuple(classes))
    if weights is not None:
        path = locate(weights)
        if not isinstance(built, DarknetDetector):
            raise InputError(f"{path}: expected a darknet architecture for a .weights file, got {type(built).__name__}")
        built.load_weights(Path(path))
    return built
