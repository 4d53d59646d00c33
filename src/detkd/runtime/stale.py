"""What an earlier run of the same command left in its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from detkd.runtime.run import RESULTS_FILE

_NUMBERED = re.compile(r"[0-9]{3,}(_[A-Za-z0-9_-]+)?\.png")  # as detkd.runtime.plotting.file_name makes them


def clear(folder: Path, numbered: Sequence[str] = ()) -> None:
    """Remove results.json, so that the folder is unfinished until it is written again, and numbered pictures.

    numbered: what comes before their number, relative to ``folder``, like "pictures/" or "sizes_". Other files are left alone.
    """
    (folder / RESULTS_FILE).unlink(missing_ok=True)
    for start in numbered:
        where, _, prefix = start.rpartition("/")
        place = folder / where
        for path in [p for p in place.glob(f"{prefix}*.png") if _NUMBERED.fullmatch(p.name.removeprefix(prefix))]:
            path.unlink()
        if where and place.is_dir() and not any(place.iterdir()):
            place.rmdir()
