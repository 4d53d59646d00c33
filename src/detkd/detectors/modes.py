"""Run a detector, or a part of it, in another mode, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detkd.detectors.protocol import Detector
from detkd.structures import Prediction


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


def probe(detector: Detector, image_size: tuple[int, int]) -> Prediction:
    """What a detector says of one blank image (height, width), in eval mode and without gradients; it is left as it was."""
    parameter = next(detector.parameters())
    with looking(detector):
        return detector(parameter.new_zeros(1, 3, *image_size))


@contextmanager
def flagged(module: nn.Module, training: bool) -> Iterator[None]:
    """Set ``training`` of this very module; ``.train()`` would recurse into the norms below it."""
    before = module.training
    module.training = training
    try:
        yield
    finally:
        module.training = before


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and all below it in eval mode, and each back to where it was."""
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


@contextmanager
def not_learning(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of the norms below ``module`` as they are; in train mode they still normalise by the batch."""
    norms = [(m, m.track_running_stats) for m in module.modules() if isinstance(m, _BatchNorm)]
    for norm, _ in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracking in norms:
            norm.track_running_stats = tracking
