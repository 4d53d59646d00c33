"""Find a file by name: at the path given, in the cache, in the shared weights, or by download with a checksum."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from detkd.classes import canonical
from detkd.disk import replacing, sha256_of
from detkd.errors import InputError


def cache_dir() -> Path:
    """Where downloads go: DETKD_CACHE, by default detkd under XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DETKD_CACHE") or Path(base) / "detkd")


def shared_weights_dir() -> Path:
    """Where a team keeps weights: DETKD_SHARED/weights, by default ../shared/weights."""
    return Path(os.environ.get("DETKD_SHARED") or "../shared") / "weights"


@dataclass(frozen=True)
class File:
    """A file that may have to be fetched.

    Args:
        name: a path, or a bare name to look for in :func:`cache_dir` and :func:`shared_weights_dir`.
        url: where to download it from when it is nowhere. sha256: of its content; a download that differs is refused.
    """

    name: str
    url: str | None = None
    sha256: str | None = None

    def locate(self) -> Path:
        """The path of the file, downloaded if need be. Raises InputError that says which file to put where."""
        given = Path(self.name).expanduser()
        bare = given.name == str(given)
        places = [given, cache_dir() / given.name, shared_weights_dir() / given.name] if bare else [given]
        for place in places:
            if place.is_file():
                return place
        looked = ", ".join(str(p) for p in places)
        if self.url is None:
            raise InputError(f"{self.name}: expected a file, found none (looked at {looked})")
        return self._download(cache_dir() / given.name, looked)

    def _download(self, destination: Path, looked: str) -> Path:
        assert self.url is not None
        advice = f"download {self.url} yourself and put it at {destination}"
        if not self.url.startswith(("https://", "http://", "file://")):
            raise InputError(f"{self.name}: expected an http(s) URL, got {self.url!r}")
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.name}: found in none of {looked}; {destination.parent} is not writable ({error.strerror})"
            ) from None
        try:
            with replacing(destination) as temporary:
                with temporary.open("wb") as file, urllib.request.urlopen(self.url, timeout=60) as response:
                    shutil.copyfileobj(response, file)
                found = sha256_of(temporary)
                if self.sha256 is not None and found != self.sha256:
                    raise InputError(f"{self.url}: expected content with sha256 {self.sha256}, found {found}; nothing was kept")
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise InputError(f"{self.name}: found in none of {looked}, and the download failed ({reason}); {advice}") from None
        return destination


def locate(file: File | str | Path) -> Path:
    """The path of a :class:`File`, or of a name to look for."""
    return (file if isinstance(file, File) else File(str(file))).locate()


def read_names(file: File | str | Path) -> tuple[str, ...]:
    """Class names of a .names file, one a line, in the official COCO spelling."""
    path = locate(file)
    names = tuple(canonical(line) for line in read_text(path).splitlines() if line.strip())
    if not names:
        raise InputError(f"{path}: expected a class name a line, found none")
    return names


def read_text(path: Path) -> str:
    """The text of a cfg or names file. Raises InputError when it is missing or not text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: expected a readable text file, found {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a text file, found binary data") from None
