"""Read a checkpoint of MMDetection without running code from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detkd.errors import InputError

_HELP = (
    "MMDetection's tools/model_converters/publish_model.py keeps the state dict and plain meta data alone, as does "
    "torch.save({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, OTHER) where you trust the file"
)


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors by MMDetection's names ("backbone.conv1.weight"), and class names where it has them."""

    state: dict[str, Tensor]
    classes: tuple[str, ...] | None


def read_weights(path: Path) -> Weights:
    """Read a checkpoint {state_dict, meta} or a bare state dict, saved by torch or as safetensors.

    Raises InputError naming the file when it is none of these or damaged, when it holds objects besides tensors and plain Python values,
    and when its meta data says that the weights mean something else than those read here (version 1, caffe style).
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a state dict or a checkpoint of MMDetection, found a {type(content).__name__}")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: expected a state dict of tensors, found {_keys(state)}")
    meta = content.get("meta") if "state_dict" in content else None
    known = meta if isinstance(meta, Mapping) else {}
    _check_meta(path, known)
    return Weights({str(name): tensor for name, tensor in state.items()}, _classes(known))


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: expected a safetensors file, found another or a damaged one ({error})") from None
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # an older format, of which torch cannot tell; loading it says what is wrong
        named = []
    if named:
        raise InputError(
            f"{path}: expected tensors and plain meta data, found objects of {', '.join(sorted(named))}; nothing was run. {_HELP}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip and unpickling readers meet
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError(f"{path}: expected a checkpoint saved by torch, could not read it: {reason}. {_HELP}") from None


def _check_meta(path: Path, meta: Mapping[Any, Any]) -> None:
    version = meta.get("mmdet_version")
    if isinstance(version, str) and re.match(r"[01]\.", version):
        raise InputError(
            f"{path}: expected weights of MMDetection 2 or later, found those of {version}: its anchors and classes have another order"
        )
    for key in ("config", "cfg"):  # versions 2 and 3
        text = meta.get(key)
        if isinstance(text, str) and re.search(r"style\s*=\s*['\"]caffe['\"]", text):
            raise InputError(
                f"{path}: expected a backbone of style 'pytorch', found style 'caffe' in its config: it strides in other convolutions"
            )


def _classes(meta: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """meta.dataset_meta.classes (version 3), or meta.CLASSES (version 2)."""
    dataset = meta.get("dataset_meta")
    of_dataset = dataset if isinstance(dataset, Mapping) else {}
    for names in (of_dataset.get("classes"), of_dataset.get("CLASSES"), meta.get("CLASSES")):
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _keys(content: object) -> str:
    if isinstance(content, Mapping):
        return f"the keys {[str(key) for key in list(content)[:6]]}"
    return f"a {type(content).__name__}"
