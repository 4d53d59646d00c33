"""Ask a detector for what a loss term needs beyond the plain interface, or say which detectors have it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TypeVar, cast

from detkd.detectors.checkpoint import ARCHITECTURES
from detkd.detectors.protocol import DenseHead, Detector, TwoStage
from detkd.errors import InputError

Capability = TypeVar("Capability", DenseHead, TwoStage)

# what a class must define, and what to call it
_METHODS: dict[object, tuple[tuple[str, ...], str]] = {
    DenseHead: (("towers", "head", "head_from", "boxes"), "a dense head that can be read and fed"),
    TwoStage: (("propose", "pool", "roi_head", "refine", "head_modules"), "a RoI head"),
}


def require(detector: Detector | None, capability: Callable[..., Capability], term: str, role: str = "teacher") -> Capability:
    """The detector, known to have ``capability`` (:class:`DenseHead` or :class:`TwoStage`).

    Args:
        term: name of the loss term that needs it. role: what the detector is to the term, "teacher" or "student".

    Raises InputError naming the term, the methods that are missing and the detectors of this package that have them.
    """
    methods, words = _METHODS[capability]
    missing = list(methods) if detector is None else [name for name in methods if not callable(getattr(detector, name, None))]
    if not missing:
        return cast(Capability, detector)
    found = f"no {role}" if detector is None else f"a {type(detector).__name__} without {', '.join(missing)}"
    raise InputError(
        f"loss '{term}': expected a {role} with {words} ({', '.join(methods)}), found {found}. "
        f"Detectors that have it: {', '.join(detectors_with(capability))}"
    )


def detectors_with(capability: Callable[..., DenseHead | TwoStage]) -> list[str]:
    """Names of this package's detectors that have ``capability``, sorted."""
    methods, _ = _METHODS[capability]
    classes = [getattr(importlib.import_module(module), name) for name, module in ARCHITECTURES.items()]
    return sorted(c.__name__ for c in classes if all(callable(getattr(c, name, None)) for name in methods))
