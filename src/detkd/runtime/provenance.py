"""How a student came about, as far as its checkpoint and the run beside it say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detkd.detectors.checkpoint import read_description
from detkd.detectors.files import locate
from detkd.disk import sha256_of
from detkd.errors import InputError
from detkd.runtime.run import CONFIG_FILE, RESULTS_FILE

# of a distillation's config.yaml, what makes a student what it is; of those that name files and folders, the last part alone is kept
_PATHS = ("data.root", "teacher.path", "val.root")
_KEYS = ("steps", "batch_size", "seed", "labels", "data.root", "data.format", "teacher.path", "optimizer.lr", "val.root")


@dataclass(frozen=True)
class Provenance:
    """Where a student came from, without the folders that its files lay in.

    source: the file's name without its folder, and sha256: its checksum; both None without a checkpoint.
    about: what the checkpoint says of itself. training: settings by dotted key, and ``loss``, the terms. scores: as results.json has them.
    """

    source: str | None = None
    sha256: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)


def read_provenance(node: DictConfig) -> Provenance:
    """Of a student node: its checkpoint, and where that is a run's, the config.yaml and results.json beside it.

    Files beside it that cannot be read are passed over: the student does not need them.
    """
    if "path" not in node:
        return Provenance()
    path = locate(str(node.path))
    try:
        about = read_description(path).get("about")
    except InputError:  # a checkpoint of another program
        return Provenance(path.name, sha256_of(path))
    about = about if isinstance(about, dict) else {}
    kept = about.get("scores")
    scores = _without_folders(kept) if isinstance(kept, dict) else {}
    results = _results(path.parent / RESULTS_FILE)
    if results.get("student") != path.name:
        return Provenance(path.name, sha256_of(path), about, {}, scores)
    return Provenance(path.name, sha256_of(path), about, _training(path.parent / CONFIG_FILE), _without_folders(results))


def last_part(path: str) -> str:
    """Of a path of any system its last part: a name that says nothing of whose machine it was on."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def _without_folders(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {key: last_part(value) if key == "scored_on" and isinstance(value, str) else value for key, value in scores.items()}


def _results(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _training(path: Path) -> dict[str, Any]:
    try:
        config = OmegaConf.load(path)
    except Exception:  # whatever a damaged file raises
        return {}
    if not isinstance(config, DictConfig):
        return {}
    found = {key: OmegaConf.select(config, key, default=None, throw_on_resolution_failure=False) for key in _KEYS}
    loss = config.get("loss")
    terms = [str(name) for name, term in loss.items() if isinstance(term, DictConfig)] if isinstance(loss, DictConfig) else []
    plain = {
        key: last_part(value) if key in _PATHS and isinstance(value, str) else value
        for key, value in found.items()
        if isinstance(value, str | int | float)
    }
    return {"loss": ", ".join(terms)} | plain if terms else plain
