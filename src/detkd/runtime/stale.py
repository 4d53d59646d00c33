"""What an earlier run of the same command left in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detkd.runtime.run import RESULTS_FILE

PICTURES = "pictures"  # in results.json: the pictures that a run numbered
# As detkd.runtime.plotting.file_name makes them, behind one folder or prefix: no name that leads out of the run's folder.
_NUMBERED = re.compile(r"([a-z]+[/_])?[0-9]{3,}(_[A-Za-z0-9_-]+)?\.png")


def listed(folder: Path, paths: Iterable[Path]) -> dict[str, list[str]]:
    """For results.json: which numbered pictures a run wrote, relative to its folder, so that ``clear`` finds them."""
    return {PICTURES: [path.relative_to(folder).as_posix() for path in paths]}


def clear(folder: Path) -> None:
    """Remove results.json, so that the folder is unfinished until it is written again, and the pictures that it lists.

    All else stays, and so do pictures of a run that was cut off before it wrote its results: no list tells them from a user's. A folder that
    is empty without its pictures goes too, unless it is a link.
    """
    names = _names(folder / RESULTS_FILE)
    (folder / RESULTS_FILE).unlink(missing_ok=True)
    for path in (folder / name for name in names):
        if path.is_file():
            path.unlink()
    for place in {(folder / name).parent for name in names} - {folder}:
        if place.is_dir() and not place.is_symlink() and not any(place.iterdir()):
            place.rmdir()


def _names(path: Path) -> list[str]:
    try:
        results: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none, or none that says what it wrote
        return []
    names = results.get(PICTURES) if isinstance(results, dict) else None
    return [n for n in names if isinstance(n, str) and _NUMBERED.fullmatch(n)] if isinstance(names, list) else []
