"""The runs that a report is about: found on disk, read, and those that cannot be read named."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from detkd.data.manifest import read_manifest
from detkd.data.store import holds_store
from detkd.disk import parse_json, sha256_of
from detkd.errors import InputError
from detkd.runtime.run import CONFIG_FILE, RESULTS_FILE

NONE = "runs: expected at least one run that can be read, found none: "
DEPTH = 64  # of the nesting of a config or of results
# below which no runs are looked for: what runs leave in their own folders
_INSIDE = ("shards", "gallery", "pictures", "wandb", "lightning_logs", "tensorboard", "report")


@dataclass(frozen=True)
class Run:
    """A run's folder and what it says of itself.

    name: short and its own among the runs of a report. kind: the command that made it, or "run". results: None where it has none yet.
    manifest: of the set in the folder, if it has one, and set_sha256 that file's checksum.
    """

    name: str
    folder: Path
    kind: str
    config: dict[str, Any]
    results: dict[str, Any] | None
    manifest: dict[str, Any] | None = None
    set_sha256: str | None = None

    @property
    def found(self) -> dict[str, Any]:
        """The results, or nothing."""
        return self.results or {}


def read_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Read the runs in and below folders, in the order given.

    A folder with a config.yaml is a run, and so is one with a set's manifest; of another folder all runs below it are taken.

    Returns:
        the runs, and for each folder that holds a damaged one, or none, a message that says what is wrong.

    Raises InputError where no path is given, a path is no folder, or no run can be read.
    """
    if not paths:
        raise InputError("runs: expected folders of runs, like 'runs=[runs/a,runs/b]', found none")
    folders: dict[Path, Path] = {}  # of each run, the path that led to it
    problems: list[str] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"runs: expected folders of runs, found no folder {str(path)!r}")
        below, damage = find_runs(path)
        problems += damage
        if not below and not damage:
            problems.append(f"{path}: expected a run (a folder with {CONFIG_FILE}) or runs below it, found none")
        for folder in below:
            folders.setdefault(folder.resolve(), path.resolve())
    runs = []
    for folder, name in zip(folders, short_names(folders)):
        try:
            runs.append(read_run(folder, name))
        except (InputError, OSError) as error:
            problems.append(f"{name}: {error}; the run is left out")
    if not runs:
        raise InputError(NONE + "; ".join(problems))
    return runs, problems


def find_runs(path: Path) -> tuple[list[Path], list[str]]:
    """The folder itself where it is a run, else all runs below it, by path; nothing is looked for inside of a run.

    Returns the runs, and what must have been one or could not be looked into. A results.json above other runs sums them up, as the demo's.
    """
    found: list[Path] = []
    problems: list[str] = []
    lost: list[Path] = []  # results without a config

    def unreadable(error: OSError) -> None:
        problems.append(
            f"{error.filename}: expected a folder to look for runs in, found one that cannot be read ({error.strerror})"
        )

    for folder, names, files in os.walk(path, onerror=unreadable):
        if CONFIG_FILE in files or ("manifest.json" in files and "shards" in names):
            found.append(Path(folder))
            names.clear()
        elif RESULTS_FILE in files:
            lost.append(Path(folder))
        names[:] = sorted(name for name in names if name not in _INSIDE and not name.startswith("."))
    problems += [
        f"{folder}: expected a run, found {RESULTS_FILE} without {CONFIG_FILE}; it is left out"
        for folder in lost
        if not any(run.is_relative_to(folder) for run in found)
    ]
    return found, problems


def read_run(folder: Path, name: str) -> Run:
    """Read what a run says of itself. Raises InputError naming the file that is damaged."""
    config = _read_config(folder / CONFIG_FILE)
    results = _read_json(folder / RESULTS_FILE)
    manifest = read_manifest(folder) if holds_store(folder) or (folder / "manifest.json").is_file() else None
    checksum = None if manifest is None else sha256_of(folder / "manifest.json")
    return Run(name, folder, kind_of(config, results or {}, manifest), config, results, manifest, checksum)


def kind_of(config: Mapping[str, Any], results: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> str:
    """The command that made a run: as it was recorded, else by what its files hold."""
    words = str(results.get("command", "")).split()
    named = next((word.removeprefix("detkd.") for word in words if word.startswith("detkd.")), "")
    if named.isidentifier():
        return named
    if manifest is not None:
        return "invert" if "stages" in config or not config else "tile"
    for key, kind in (("students", "features"), ("student", "distill")):
        if key in config:
            return kind
    return "evaluate" if "teacher" in config and "data" in config else "run"


def short_names(folders: Mapping[Path, Path]) -> list[str]:
    """Names for run folders, by the path that led to each: the way down from it, its own name first where there are several paths.

    As many outer folders are added as it takes for all names to differ, and to be more than the number of a sweep's job or seed.
    """
    roots = set(folders.values())
    for outer in range(max((len(folder.parts) for folder in folders), default=0)):
        names = []
        for folder, root in folders.items():
            above = outer + (len(roots) > 1 or folder == root)
            names.append("/".join(folder.parts[max(1, len(root.parts) - above) :]) or folder.as_posix())
        if len(set(names)) == len(names) and not any(name.isdecimal() for name in names):
            return names
    return [folder.as_posix() for folder in folders]


def resolved(path: str | Path) -> Path | None:
    """The path without links; None for what no file system takes: NUL bytes, lone surrogates, names that are too long."""
    try:
        return Path(path).resolve()
    except (ValueError, OSError, RuntimeError):  # the last for a circle of links, before Python 3.13
        return None


def select(config: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings; None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # a damaged file raises whatever yaml or omegaconf stumbles over
        raise InputError(f"{path}: expected the config of a run, found {type(error).__name__}: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected the config of a run, found a {type(config).__name__}")
    if not config:
        raise InputError(f"{path}: expected the config of a run, found nothing in it")
    _check_depth(config, path)
    return {str(key): value for key, value in config.items()}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        results = parse_json(path.read_bytes(), path)
        _check_depth(results, path)
        return results
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: expected results, found a file that cannot be read ({error.strerror})") from None


def _check_depth(value: Any, path: Path) -> None:
    """Raise InputError where mappings and lists lie deeper in each other than any run leaves them, and than a page can show."""
    level = [value]
    for _ in range(DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise InputError(f"{path}: expected at most {DEPTH} mappings and lists in each other, found more")
