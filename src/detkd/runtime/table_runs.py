"""Runs as a table reads them: their configs by dotted key, and one number of their results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from detkd.errors import InputError
from detkd.runtime.run import CONFIG_FILE, RESULTS_FILE


@dataclass(frozen=True)
class Run:
    """One run: its folder, the flattened config by dotted key, whether it has results, and its value.

    value: finite; None where there are no results, or where they say null, NaN or infinity, as a score of no boxes does.
    """

    folder: Path
    config: dict[str, Any]
    finished: bool
    value: float | None


def read_runs(root: str | Path, value_key: str, keys: Sequence[str] = (), none_ok: bool = False) -> list[Run]:
    """All runs below a folder, in order of their paths: every folder with a config.yaml.

    Args:
        value_key: a key of the results, dotted where it lies deeper, like per_class.car.
        keys: of configs. A run that lacks one is in no table of them: its results are not read, and it has no value.
        none_ok: whether a folder without runs is none.

    Raises InputError where the folder has no runs, or a results.json lacks the value or is damaged.
    """
    found = [_read_run(path.parent, value_key, keys) for path in sorted(Path(root).rglob(CONFIG_FILE))]
    if not found and not none_ok:
        raise InputError(f"{root}: expected runs (folders with a {CONFIG_FILE}), found none")
    return found


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one, by dotted keys; lists are joined by commas, and a dict's own key holds the names in it."""
    if isinstance(config, Mapping):
        inner = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in config.items()]
        own = {prefix: ",".join(map(str, config))} if prefix else {}
        return own | {k: v for part in inner for k, v in part.items()}
    return {prefix: ",".join(map(str, config)) if isinstance(config, list) else config}


def look_up(results: Any, key: str) -> Any:
    """What nested dicts hold under a dotted key; names with dots in them are found too. Raises KeyError where there is nothing."""
    if isinstance(results, Mapping):
        if key in results:
            return results[key]
        parts = key.split(".")
        for cut in range(1, len(parts)):
            if (head := ".".join(parts[:cut])) in results:
                try:
                    return look_up(results[head], ".".join(parts[cut:]))
                except KeyError:
                    continue
    raise KeyError(key)


def _read_run(folder: Path, value_key: str, keys: Sequence[str]) -> Run:
    try:
        config = flatten(OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE)))
    except Exception as error:
        raise InputError(
            f"{folder / CONFIG_FILE}: expected the config of a run, found {type(error).__name__}: {error}"
        ) from None
    path = folder / RESULTS_FILE
    if not path.is_file() or any(key not in config for key in keys):
        return Run(folder, config, path.is_file(), None)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected results with {value_key!r}, found {type(error).__name__}: {error}") from None
    try:
        value = look_up(results, value_key)
    except KeyError:
        raise InputError(f"{path}: expected results with {value_key!r}, found {_numbers(results)}") from None
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise InputError(f"{path}: expected a number as {value_key!r}, found {value!r}")
    return Run(folder, config, True, float(value) if value is not None and math.isfinite(value) else None)


def _numbers(results: Any) -> str:
    """The keys of results that hold numbers, to choose from."""
    flat = flatten(results) if isinstance(results, Mapping) else {}
    names = [key for key, value in flat.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "no numbers"
