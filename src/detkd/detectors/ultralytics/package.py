"""The ``ultralytics`` package: found, checked and imported only here, offline, and without what its import changes elsewhere."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import PIL.Image
import torch

from detkd.errors import InputError

# 8.3.17 is the first 8.3 that builds YOLOv8 heads as they were published; 8.4.190 the highest tested.
LOWEST, BELOW = (8, 3, 17), (8, 5)
SUPPORTED = ">=8.3.17,<8.5"
HINT = f"pip install 'detkd[ultralytics]' (ultralytics{SUPPORTED}; its licence is AGPL-3.0)"
# Both bring the module; the second brings an OpenCV that needs no display libraries.
DISTRIBUTIONS = ("ultralytics", "ultralytics-opencv-headless")
# No look at the network at import, and no pip run by the package itself. A user's own settings win.
OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


def import_tasks() -> ModuleType:
    """The module ``ultralytics.nn.tasks``.

    Raises InputError with the pip command when the package is missing, cannot be imported, or is of another version.
    """
    version = _installed()
    if version is None:
        raise InputError(f"expected the package ultralytics, found none; {HINT}")
    if _release(version) < LOWEST or _release(version) >= BELOW:
        raise InputError(f"expected ultralytics{SUPPORTED}, found {version}; {HINT}")
    try:
        with _offline(), _unpatched():
            return importlib.import_module("ultralytics.nn.tasks")
    except (ImportError, OSError) as error:  # OSError: a library of OpenCV that the system lacks
        raise InputError(
            f"expected the package ultralytics, found {version}, which cannot be imported: {error}; {HINT}"
        ) from error


def model_file(family: str) -> Path:
    """The yaml of a family ("yolov8", "yolo11") within the installed package."""
    package = importlib.import_module("ultralytics")
    assert package.__file__ is not None
    return Path(package.__file__).parent / "cfg" / "models" / family.removeprefix("yolo") / f"{family}.yaml"


def _installed() -> str | None:
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


@contextmanager
def _offline() -> Iterator[None]:
    added = {name: value for name, value in OFFLINE.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _unpatched() -> Iterator[None]:
    """Undo what the import replaces for the whole process.

    Some versions make ``torch.load`` read pickles by default (weights_only=False), for every caller.
    """
    load, save, open_image = torch.load, torch.save, PIL.Image.open
    try:
        yield
    finally:
        torch.load, torch.save, PIL.Image.open = load, save, open_image
