"""Weights of the package's models from disk, without running code from the file.

The package's own checkpoints are pickles of whole modules. Even a list of trusted classes is not enough for them: a pickle may call a
class with arguments of its choice, and the package's model classes evaluate text that they find in theirs. So every class that a
checkpoint may name is read as a :class:`Husk`, which keeps attributes and does nothing; neither torch's nor the package's classes are
touched, and the package need not be installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, serialization

from detkd.errors import InputError

# What a checkpoint of a detector may name besides what torch.load(weights_only=True) knows: modules, and what training settings and
# scores were kept in.
MODULES = re.compile(r"(torch\.nn\.modules|ultralytics\.nn)(\.\w+)+")
CONTAINERS = frozenset(
    {
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
        "ultralytics.utils.IterableSimpleNamespace",
        "ultralytics.yolo.utils.IterableSimpleNamespace",
    }
)
HEAD = "ultralytics.nn.modules.head."
HELP = "With the package itself, torch.save(YOLO(FILE).model.state_dict(), OTHER) makes a file of tensors alone"


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors by the package's names ("model.0.conv.weight"), and class names where it has them."""

    state: dict[str, Tensor]
    classes: tuple[str, ...] | None


class Husk:
    """What is left of an object of a checkpoint: its attributes. Whatever it is called with is dropped."""

    called = ""

    attributes: dict[str, Any]

    def __new__(cls, *_: Any, **__: Any) -> Husk:
        husk = super().__new__(cls)
        husk.attributes = {}
        return husk

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    def get(self, name: str) -> Any:
        """The attribute, or None."""
        return self.attributes.get(name)

    def members(self, name: str) -> Mapping[str, Any]:
        """The attribute where it is a mapping with names, else an empty one."""
        found = self.get(name)
        return found if isinstance(found, dict) and all(isinstance(key, str) for key in found) else {}


def read_weights(path: Path) -> Weights:
    """Read a state dict (.safetensors, or .pt) or a checkpoint of the package (.pt).

    Raises InputError naming the file when it is none of these, is damaged, or names a global that no such checkpoint needs.
    """
    if path.suffix == ".safetensors":
        try:
            return Weights(_package_names(path, load_file(path)), None)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: expected a safetensors file, found another or a damaged one ({error})") from None
    content = _read_pickle(path)
    if isinstance(content, dict):
        for key in ("ema", "model"):  # the average, where a checkpoint has both
            if isinstance(content.get(key), Husk):
                return _of_model(path, content[key])
        tensors = content.get("model") if isinstance(content.get("model"), dict) else content
        if tensors and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
            return Weights(_package_names(path, tensors), None)
    if isinstance(content, Husk):
        return _of_model(path, content)
    raise InputError(
        f"{path}: expected a state dict or a checkpoint of ultralytics, found a {type(content).__name__} without a model"
    )


def _read_pickle(path: Path) -> Any:
    try:
        with _no_other_globals():
            named = sorted(serialization.get_unsafe_globals_in_checkpoint(str(path)))
            refused = [name for name in named if not MODULES.fullmatch(name) and name not in CONTAINERS]
            if refused:
                raise InputError(
                    f"{path}: expected a checkpoint that names modules of torch and ultralytics alone, found {', '.join(refused)}; "
                    f"nothing was run. {HELP}"
                )
            with serialization.safe_globals([_husk(name) for name in named]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch raises whatever its zip and unpickling readers meet
        raise InputError(
            f"{path}: expected weights saved by torch or safetensors, could not read them: {type(error).__name__}: {error}"
        ) from None


@contextmanager
def _no_other_globals() -> Iterator[None]:
    """Forget, for the block, what else this process lets checkpoints name: those are real classes."""
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)


def _husk(name: str) -> tuple[type[Husk], str]:
    """A class of its own for each name, and the name that it stands for."""
    return type("Husk", (Husk,), {"called": name}), name


def _of_model(path: Path, model: Husk) -> Weights:
    layers = [layer for layer in model.members("_modules").values() if isinstance(layer, Husk)]
    last = list(layers[0].members("_modules").values())[-1:] if layers else []
    kind = last[0].called if last and isinstance(last[0], Husk) else model.called
    if kind.startswith(HEAD) and kind != HEAD + "Detect":
        raise InputError(f"{path}: expected a detection model with the head Detect, found {kind.removeprefix(HEAD)}")
    state = _package_names(path, dict(_tensors(model)))
    names = model.get("names")
    if isinstance(names, dict):  # {0: "person", ...}
        listed = [names.get(index) for index in range(len(names))]
    else:
        listed = names
    classes = tuple(listed) if isinstance(listed, (list, tuple)) and all(isinstance(name, str) for name in listed) else None
    return Weights(state, classes)


def _tensors(module: Husk, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers below a module, named as in its state dict."""
    passing = module.get("_non_persistent_buffers_set") or set()
    for group in ("_parameters", "_buffers"):
        for name, tensor in module.members(group).items():
            if isinstance(tensor, Tensor) and name not in passing:
                yield prefix + name, tensor.detach()
    for name, child in module.members("_modules").items():
        if isinstance(child, Husk):
            yield from _tensors(child, f"{prefix}{name}.")


def _package_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in DetectionModel: what a wrapper put in front is left out."""
    state = {}
    for name, tensor in tensors.items():
        found = re.search(r"(?:^|\.)(model\.\d+\..+)$", name)
        if found is None:
            raise InputError(f"{path}: expected tensors of an ultralytics model like model.0.conv.weight, found {name}")
        state[found[1]] = tensor
    if not state:
        raise InputError(f"{path}: expected the tensors of an ultralytics model, found none")
    return state
