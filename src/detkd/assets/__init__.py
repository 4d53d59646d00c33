"""What the package ships: the built-in teacher, a small YOLO trained on the built-in world.

Beside each checkpoint lies a json with the command that made it, its seed and its scores.
"""

from __future__ import annotations

from importlib.resources import as_file, files

from detkd.detectors.checkpoint import load_checkpoint
from detkd.detectors.protocol import Detector
from detkd.errors import InputError


def builtin(name: str = "scenes_teacher") -> Detector:
    """A detector that is shipped in the package. Raises InputError for a name that is not."""
    resource = files(__package__) / f"{name}.safetensors"
    if not name.isidentifier() or not resource.is_file():
        raise InputError(f"expected the name of a built-in detector (scenes_teacher), got {name!r}")
    with as_file(resource) as path:
        return load_checkpoint(path)
