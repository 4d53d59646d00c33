"""The manifest of a store: what it must say, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detkd.disk import parse_json
from detkd.errors import InputError

FORMAT = "detkd.store"
VERSION = 1


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest in ``root``, with all the keys that a store has. Raises InputError naming the file when it is none of ours."""
    path = root / "manifest.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected the manifest of a store, found none ({error.strerror})") from error
    manifest = parse_json(content, path)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT!r}, got {manifest.get('format')!r}")
    if manifest.get("version") != VERSION:
        raise InputError(f"{path}: expected version {VERSION}, got {manifest.get('version')!r}")
    kinds = {"complete": bool, "recipe": object, "teacher_sha256": str, "seed": int, "classes": list, "image_size": list}
    if manifest.get("complete") is True:
        kinds |= {"records": list, "shards": list, "instances_sha256": str}
    wrong = [key for key, kind in kinds.items() if key not in manifest or not isinstance(manifest[key], kind)]
    sizes_fit = wrong or [type(v) for v in manifest["image_size"]] == [int, int]
    shards_fit = all(isinstance(s, dict) and "sha256" in s for s in manifest.get("shards", []))
    if wrong or not sizes_fit or not shards_fit:
        raise InputError(
            f"{path}: expected the keys of a store, missing or of the wrong type: {wrong or ['image_size', 'shards']}"
        )
    return manifest
