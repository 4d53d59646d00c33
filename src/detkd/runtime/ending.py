"""What a command does last, however it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with whether the command failed.
Ending = Callable[[bool], None]
_endings: list[Ending] = []


def at_end(ending: Ending) -> None:
    """Have ``ending`` called once when the command of this process ends.

    Hydra's own on_multirun_end is not called where a job fails, so what a failed sweep is to leave cannot stand there.
    """
    _endings.append(ending)


@contextmanager
def endings() -> Iterator[None]:
    """Call what :func:`at_end` was given when the block ends; where it fails, its own error is the one that is raised."""
    try:
        yield
    except BaseException:
        while _endings:
            try:
                _endings.pop()(True)
            except Exception as error:
                print(f"note: {error}", file=sys.stderr, flush=True)
        raise
    while _endings:
        _endings.pop()(False)
