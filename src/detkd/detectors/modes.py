"""Look at a detector in eval mode and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from detkd.detectors.protocol import Detector


@contextmanager
def looking(detector: Detector) -> Iterator[None]:
    """Run the block with ``detector`` in eval mode and without gradients, so that no norm learns from it.

    Each submodule gets its own mode back: ``.train()`` on the whole would also wake parts that were kept in eval.
    """
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
