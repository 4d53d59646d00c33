"""A model of the package and where its weights and class names come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detkd.detectors.files import File, locate, read_names
from detkd.detectors.ultralytics.detector import UltralyticsDetector
from detkd.detectors.ultralytics.weights import Weights, read_weights
from detkd.errors import InputError


def pretrained(
    detector: Callable[..., UltralyticsDetector],
    classes: Sequence[str] | File | None = None,
    weights: File | str | None = None,
    seed: int = 0,
) -> UltralyticsDetector:
    """Build a detector and fill it.

    Args:
        detector: the architecture, which takes ``classes``.
        classes: names, or the .names file that has them; None takes those of the checkpoint.
        weights: a state dict (.safetensors, .pt) or a checkpoint of the package (.pt); None leaves the random start, drawn with ``seed``
            whatever was drawn before.

    Nothing is downloaded but what a File says. Raises InputError when a file is missing or does not fit, or there are no names.
    """
    if isinstance(classes, (File, str)):
        classes = read_names(classes)
    path = None if weights is None else locate(weights)
    found = Weights({}, None) if path is None else read_weights(path)
    names = found.classes if classes is None else tuple(classes)
    if names is None:
        raise InputError(
            f"classes: expected class names, found none{'' if path is None else f' in {path}'}; give classes=[...] or a .names file"
        )
    if len(set(names)) != len(names):
        raise InputError(
            f"classes: expected names that differ, found {sorted({n for n in names if names.count(n) > 1})} more than once"
        )
    if path is not None:
        _check_head(str(path), found.state, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = detector(classes=names)
    if path is not None:
        _fill(str(path), built, found.state)
    return built


def _check_head(path: str, state: dict[str, Tensor], names: Sequence[str]) -> None:
    heads = [tensor for name, tensor in state.items() if name.endswith("cv3.0.2.bias")]
    if heads and len(heads[0]) != len(names):
        raise InputError(f"classes: expected {len(heads[0])} names for the head in {path}, found {len(names)}")


def _fill(path: str, built: UltralyticsDetector, state: dict[str, Tensor]) -> None:
    # Compared first: load_state_dict would copy what fits before it finds what does not.
    expected = built.network.state_dict()
    differing = [name for name in sorted(set(expected) | set(state)) if _shape(expected, name) != _shape(state, name)]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path}: expected the weights of {built.architecture}, found others: {len(differing)} tensors differ, the first is {name}: "
            f"expected {_shape(expected, name)}, found {_shape(state, name)}"
        )
    built.network.load_state_dict(state)


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "nothing"
