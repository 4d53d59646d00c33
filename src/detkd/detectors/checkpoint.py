"""Our own checkpoint: one safetensors file that holds a detector's weights and, as json text, how to build it again.

Opening one runs no code from it: the architecture is looked up among the detectors of this package, its arguments are json.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from detkd.detectors.files import File, locate
from detkd.detectors.protocol import Detector
from detkd.disk import replacing
from detkd.errors import InputError

FORMAT = "detkd.detector"
VERSION = 1

# What a checkpoint may name. Others are built by their owner and passed to load_checkpoint(detector=...).
ARCHITECTURES = {
    "DarknetDetector": "detkd.detectors.darknet.detector",
    "SSD": "detkd.detectors.torchvision",
    "RetinaNet": "detkd.detectors.torchvision",
    "FCOS": "detkd.detectors.torchvision",
    "FasterRCNN": "detkd.detectors.torchvision",
    "FasterRCNNC4": "detkd.detectors.torchvision",
    "CascadeRCNN": "detkd.detectors.torchvision",
    "UltralyticsDetector": "detkd.detectors.ultralytics",
}


def save_checkpoint(
    detector: Detector, path: Path, about: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a detector, atomically.

    Args:
        about: json-able provenance kept beside it (command, scores, the teacher's hash).
        dtype: of stored floating-point weights; None keeps theirs.
    """
    path = Path(path)
    state = {}
    for name, tensor in detector.state_dict().items():
        stored = tensor.detach().cpu()
        if dtype is not None and stored.is_floating_point():
            stored = stored.to(dtype)
        state[name] = stored.contiguous().clone()
    description = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": type(detector).__name__,
        "arguments": detector.arguments(),
        "spec": detector.spec.to_dict(),
        "about": dict(about or {}),
    }
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"detkd": json.dumps(description, sort_keys=True)})
        temporary.chmod(0o644)  # safetensors makes it private


def read_description(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: architecture, arguments, spec, about. Raises InputError when it is not ours."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"{path}: expected a detkd checkpoint, found no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: expected a detkd checkpoint (safetensors), found another or a damaged file ({error}); "
            "pickles (.pt, .pth, .ckpt) are not opened"
        ) from None
    try:
        description = json.loads(metadata["detkd"])
        ours = description["format"] == FORMAT
    except (KeyError, TypeError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"{path}: expected a checkpoint written by detkd, found a safetensors file without its description")
    if description.get("version") != VERSION:
        raise InputError(f"{path}: expected checkpoint version {VERSION}, found {description.get('version')!r}")
    return cast(dict[str, Any], description)


def load_checkpoint(path: File | str | Path, detector: Detector | None = None) -> Detector:
    """Build a detector from a checkpoint.

    Args:
        path: the file, or a name to look for as :class:`~detkd.detectors.files.File` does.
        detector: an architecture to fill, needed when it is not one of this package.

    Raises InputError when the file is not ours, names an unknown architecture, or does not fit.
    """
    found = locate(path)
    description = read_description(found)
    if detector is None:
        detector = _build(found, description)
    with safe_open(str(found), framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    expected = detector.state_dict()
    # Compared first: load_state_dict would copy what fits before it finds what does not.
    differing = [n for n in sorted(set(expected) | set(state)) if _shape_in(expected, n) != _shape_in(state, n)]
    if differing:
        name = differing[0]
        raise InputError(
            f"{found}: expected the weights of a {type(detector).__name__} as described, found others: {len(differing)} differ, "
            f"the first is {name}: expected {_shape_in(expected, name)}, found {_shape_in(state, name)}"
        )
    detector.load_state_dict(state, strict=True)
    return detector


def _shape_in(state: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "nothing"


def _build(path: Path, description: Mapping[str, Any]) -> Detector:
    name, arguments = description.get("architecture"), description.get("arguments")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(
            f"{path}: expected an architecture of {sorted(ARCHITECTURES)}, found {name!r}; "
            "a detector of your own is built by you and passed as load_checkpoint(path, detector=...)"
        )
    if not isinstance(arguments, dict):
        raise InputError(f"{path}: expected the arguments of {name} as an object, found {type(arguments).__name__}")
    if arguments.get("weights") is not None:
        raise InputError(
            f"{path}: expected weights=null in its description, found {arguments['weights']!r}: opening a file fetches nothing"
        )
    architecture = getattr(importlib.import_module(ARCHITECTURES[name]), name)
    try:
        return cast(Detector, architecture(**arguments))
    except Exception as error:  # a constructor may raise anything when its arguments are of another type than it expects
        raise InputError(f"{path}: {name} cannot be built from its description: {type(error).__name__}: {error}") from None


def fingerprint(detector: Detector) -> str:
    """sha256 over the weights of a detector, which tells one teacher from another wherever they were loaded from."""
    return _fingerprint(detector.state_dict())


def fingerprint_file(path: Path) -> str:
    """The fingerprint of the detector in a checkpoint, without building it. Raises InputError as :func:`read_description` does."""
    read_description(path)
    with safe_open(str(path), framework="pt") as file:
        return _fingerprint({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (not a dict)


def _fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else str(tensor.detach().cpu()).encode()
        )
    return digest.hexdigest()
