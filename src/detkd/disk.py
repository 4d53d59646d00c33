"""Files written whole or not at all, json that is the same everywhere, and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detkd.errors import InputError


def dump_json(value: Any) -> bytes:
    """Json that is the same wherever it is written."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The json object in ``content``. Raises InputError naming ``path`` when it is none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected json, but it does not parse: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a json object, got {type(value).__name__}")
    return value


def differences(there: Any, ours: Any, key: str = "") -> Iterator[str]:
    """Where two json values differ, key by key: "a.b: 1 there, 2 here"."""
    if isinstance(there, dict) and isinstance(ours, dict):
        for name in sorted(set(there) | set(ours)):
            yield from differences(there.get(name), ours.get(name), f"{key}.{name}" if key else name)
    elif there != ours:
        yield f"{key}: {there!r} there, {ours!r} here"


def sha256(content: bytes) -> str:
    """Hexadecimal checksum."""
    return hashlib.sha256(content).hexdigest()


def read_checked(path: Path, expected: str) -> bytes:
    """The content of a file. Raises InputError when it cannot be read or has not the sha256 that is expected."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a file, found none that can be read ({error.strerror})") from error
    if (found := sha256(content)) != expected:
        raise InputError(f"{path}: expected sha256 {expected}, found {found}: it was damaged or changed")
    return content


def sha256_of(path: Path) -> str:
    """Hexadecimal checksum of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; it takes the place of ``path`` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, in place of the one that is there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
