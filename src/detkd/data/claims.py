"""Claims: which process works on which part of a folder, so that none is done twice at the same time.

A claim is an advisory lock of the operating system on an empty file: it ends with the process that holds it, however that ends, so
that nothing is ever left locked by the dead. The lock libraries at hand fall back to a file's mere existence where there are no
such locks, which a killed process leaves behind; here such a file system has no claims: work may be done twice there, but what
is written is the same and written whole.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True


class Claims:
    """Claims by name in ``folder``, which is there while there are any. Names are file names.

    shared: whether other processes know of them; False where there are no locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, HAS_LOCKS
        self._held: dict[str, int | None] = {}

    def take(self, name: str) -> bool:
        """Claim ``name``; False where another process, or this object, holds it."""
        if name in self._held:
            return False
        path = self.folder / name
        while self.shared:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except (FileNotFoundError, FileExistsError):  # the folder went away in between: its last user has left
                continue
            locked = _lock(file)
            if locked and _is(path, file):
                self._held[name] = file
                return True
            os.close(file)
            if locked is None:
                self.shared = False
            elif not locked:
                return False
            # else its holder removed it before letting go: the name is free, or another's
        self._held[name] = None
        return True

    def release(self, name: str) -> None:
        """Give a claim up, if it is held."""
        file = self._held.pop(name, None)
        if file is not None:
            (self.folder / name).unlink(missing_ok=True)
            os.close(file)
            with contextlib.suppress(OSError):  # others are in it
                self.folder.rmdir()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait for the claim and hold it for a while."""
        while not self.take(name):
            time.sleep(0.02)
        try:
            yield
        finally:
            self.release(name)

    def others(self) -> list[str]:
        """Names that other processes hold now. What a dead process left is removed."""
        found = []
        try:
            names = sorted(path.name for path in self.folder.iterdir())
        except FileNotFoundError:
            return []
        for name in names:
            if name in self._held:
                continue
            if self.take(name):
                self.release(name)
            else:
                found.append(name)
        return found

    def close(self) -> None:
        """Give up all claims, and remove what the dead left."""
        for name in list(self._held):
            self.release(name)
        self.others()


def _lock(file: int) -> bool | None:
    """Lock an open file, if nobody else has; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(f"this file system has no locks ({error.strerror}): processes may do the same work twice", stacklevel=2)
        return None
    return True


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
