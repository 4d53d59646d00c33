"""Compile what an inversion runs thousands of times: a detector's forward pass, its taps, and the way back to the pixels."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from detkd.detectors.folding import TappedDetector
from detkd.detectors.norms import Observed
from detkd.errors import InputError
from detkd.structures import Prediction

Forward = Callable[[Tensor], tuple[Prediction, Sequence[Observed]]]
# Steps of one shape from which on "auto" compiles. Yolo-Fastest-XL at 16 x 160 px gains 30 to 100 seconds of compilation back in 600 to 2,000
# (two CPU cores); a detector whose time goes to large convolutions, like YOLOv3-SPP, gains next to nothing and loses a minute.
COMPILE_STEPS = 4000
TOLERANCE = 0.05  # of the gradient's length; float32 differs by 1e-6, bfloat16 by some hundredths


def check_choice(choice: object) -> None:
    """Raise InputError unless it is True, False or "auto"."""
    if choice != "auto" and not isinstance(choice, bool):
        raise InputError(f"compile: expected auto, true or false, found {choice!r}")


class CompiledForward:
    """:meth:`TappedDetector.forward` through ``torch.compile``, shape by shape.

    Args:
        choice: True compiles every shape that takes any steps, False none, "auto" those that take at least :data:`COMPILE_STEPS`.

    A shape is compiled, forward and backward, and checked against the plain pass, when it first comes; all others run as they are. Where
    the compiler fails, or what it made disagrees, that is said once, as a RuntimeWarning, and all runs plain from then on.

    Attributes:
        seconds: that compilation has taken. failure: what went wrong, in words, or None.
    """

    def __init__(self, tapped: TappedDetector, choice: bool | Literal["auto"] = "auto") -> None:
        check_choice(choice)
        self.tapped = tapped
        self.least = COMPILE_STEPS if choice == "auto" else 1 if choice else math.inf
        self.seconds = 0.0
        self.failure: str | None = None
        self._compiled: Forward | None = None  # made when first wanted: torch.compile takes seconds to import
        self._ready: set[tuple[int, ...]] = set()

    def __call__(self, images: Tensor, steps: int) -> tuple[Prediction, Sequence[Observed]]:
        """What :meth:`TappedDetector.forward` gives, with gradients. steps: how many the run takes of this shape, from its settings alone."""
        if steps >= self.least and self.failure is None:
            self._prepare(images)
            if self.failure is None:
                assert self._compiled is not None
                return self._compiled(images)
        return self.tapped.forward(images)

    def _prepare(self, images: Tensor) -> None:
        """Compile for images of this shape, once, and check the result on these."""
        shape = tuple(images.shape)
        if shape in self._ready:
            return
        start = time.perf_counter()
        try:
            if self._compiled is None:
                # On a CPU the weights lie in the faster format already; the compiler would bring them into another at every step.
                options: dict[str, Any] | None = {"layout_optimization": False} if images.device.type == "cpu" else None
                self._compiled = torch.compile(self.tapped.forward, dynamic=False, options=options)
            with torch.enable_grad():
                ours, plain = _gradient(self._compiled, images), _gradient(self.tapped.forward, images)
            difference = float((ours - plain).norm() / plain.norm().clamp_min(1e-12))
            if not difference <= TOLERANCE:
                raise RuntimeError(f"its gradient differs from that of the plain pass by {difference:.2g} of its length")
            self._ready.add(shape)
        except Exception as error:  # the compiler calls other programs, and raises all sorts
            lines = str(error).strip().splitlines() or [""]
            self.failure = f"{type(error).__name__}: {lines[0]}"
            warnings.warn(
                f"compile: torch.compile failed on {type(self.tapped.detector).__name__}, so the run goes on without it ({self.failure})",
                RuntimeWarning,
                stacklevel=2,
            )
        self.seconds += time.perf_counter() - start


def _gradient(forward: Forward, images: Tensor) -> Tensor:
    """Gradient to the pixels of something that every output has a part in."""
    pixels = images.detach().clone().requires_grad_()
    prediction, observed = forward(pixels)
    total = torch.stack([raw.float().square().mean() for raw in prediction.raw.values()]).sum()
    for o in observed:
        total = total + ((o.mean - o.norm.mean).square() / (o.norm.var + 1e-5)).mean() + (o.var / (o.norm.var + 1e-5)).mean()
    (gradient,) = torch.autograd.grad(total, pixels)
    return gradient.float()
