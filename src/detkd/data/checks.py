"""Checks of annotations of unknown origin: each raises InputError that names the place and says what was expected and found."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from detkd.errors import InputError

OnProblem = Literal["error", "drop"]


def entries(values: Any, where: str, keys: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """A list of objects that all have ``keys``, each with its place: "file: images[3]"."""
    if not isinstance(values, list):
        raise InputError(f"{where}: expected a list, got {short(values)}")
    return [(f"{where}[{i}]", entry(value, f"{where}[{i}]", keys)) for i, value in enumerate(values)]


def entry(value: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """An object that has ``keys``."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object with the keys {list(keys)}, got {short(value)}")
    if missing := [k for k in keys if k not in value]:
        raise InputError(f"{where}: expected the keys {list(keys)}, missing are {missing}")
    return value


def integer(value: Any, where: str) -> int:
    """A whole number, also one written as 3.0."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(to_float(value))
        or int(value) != value
    ):
        raise InputError(f"{where}: expected a whole number, got {short(value)}")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether a json value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def to_float(value: float) -> float:
    """Float of a json number; whole numbers beyond the range of floats are infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def image_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """(height, width) of an image in pixels."""
    size = (integer(height, f"{where}.height"), integer(width, f"{where}.width"))
    if not all(0 < side <= 1_000_000 for side in size):
        raise InputError(f"{where}: expected width and height in pixels, got {size[1]} and {size[0]}")
    return size


def check_folder(root: Path) -> None:
    """A data set's folder is one."""
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of images, found {'a file' if root.exists() else 'nothing'}")


def find_image(name: Any, where: str, folders: Sequence[Path]) -> Path:
    """The file of this name in the first of ``folders`` (resolved) that has it; it must not leave them."""
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected the path of an image, got {name!r}")
    windows = PureWindowsPath(name)  # knows both separators, and drives
    if windows.drive or windows.root or ".." in windows.parts:
        raise InputError(f"{where}: expected a path below the data folder, got {name!r}")
    try:
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        inside = found is not None and any(found.resolve().is_relative_to(folder) for folder in folders)
    except (OSError, ValueError, RuntimeError) as error:  # names no file system can hold; links in a circle
        raise InputError(f"{where}: expected the path of an image, got {name[:100]!r} ({error})") from error
    if found is None:
        raise InputError(f"{where}: expected an image {name!r} in {' or '.join(map(str, folders))}, found none")
    if not inside:
        raise InputError(f"{where}: expected a file below the data folder, but {name!r} is a link that leaves it")
    return found


def check_known(
    source: str,
    classes: Sequence[str],
    unknown: set[str],
    some_known: bool,
    on_unknown: OnProblem,
    kind: str = "categories",
    proxy: bool = False,
) -> bool:
    """Categories in use that are not among ``classes`` are an error, or with "drop" a warning, unless none in use is known.

    Returns True; with ``proxy`` there is a warning in place of the error, and False.
    """
    if not unknown:
        return True
    message = f"{source}: expected {kind} among the classes {some(list(classes))}, found also {some(sorted(unknown))}"
    if some_known and on_unknown == "drop":
        warnings.warn(f"{message}: their boxes are left out", stacklevel=4)
        return True
    message += "; on_unknown=drop leaves their boxes out" if some_known else ", and none that is among them"
    if not proxy:
        raise InputError(message)
    warnings.warn(f"images are used without their boxes: {message}", stacklevel=4)
    return False


def short(value: Any) -> str:
    """The value for a message, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def some(values: Sequence[Any]) -> str:
    """The values for a message, the first 20 of them."""
    return str(list(values)) if len(values) <= 20 else f"{list(values[:20])} and {len(values) - 20} more"
