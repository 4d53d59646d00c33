"""How far a set is: counted from its shards, whoever makes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from detkd.data.manifest import read_manifest
from detkd.data.shards import parse_shard
from detkd.errors import InputError

WINDOW = 50  # shards that the rate is taken over
PAUSE = 20  # a gap this many times longer than those after it is a pause: the rate is taken after it


@dataclass(frozen=True)
class Progress:
    """images: written, of n_images (None where the recipe does not say). shards: written. accepted: images that reached every
    threshold. made: images that were made for these, over all attempts. damaged: shards that cannot be read.
    images_per_second: lately, None before two shards are there. complete: the set is merged and closed.
    """

    images: int
    n_images: int | None
    shards: int
    accepted: int
    made: int
    damaged: int
    images_per_second: float | None
    complete: bool

    @property
    def left(self) -> int | None:
        """Images to be made."""
        return None if self.n_images is None else max(0, self.n_images - self.images)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the last image, at the rate of late."""
        if not self.left:
            return None
        return None if self.images_per_second is None else self.left / self.images_per_second

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"{self.images} of {'?' if self.n_images is None else self.n_images} images in {self.shards} shards"]
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:.3g} images/s")
        if self.eta_seconds is not None:
            parts.append(f"ETA {timedelta(seconds=round(self.eta_seconds))}")
        if self.made:
            parts.append(f"accepted {self.accepted / self.images:.0%}, {self.made} made")
        if self.damaged:
            parts.append(f"{self.damaged} damaged shards")
        return ", ".join([*parts, "complete"] if self.complete else parts)


class _Seen(NamedTuple):
    written: float
    images: int
    accepted: int
    made: int


class ProgressReader:
    """Reads the progress of the store in ``root``, each shard once."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._seen: dict[str, _Seen] = {}

    def read(self) -> Progress:
        """The progress now. Raises InputError where there is no store."""
        manifest = read_manifest(self.root)
        damaged = 0
        for path in sorted((self.root / "shards").glob("[0-9]*/shard.json")):
            if path.parent.name not in self._seen:
                try:
                    self._seen[path.parent.name] = _look(path)
                except (InputError, OSError):
                    damaged += 1
        seen = sorted(self._seen.values())
        recipe = manifest["recipe"] if isinstance(manifest["recipe"], dict) else {}
        expected = recipe.get("n_images")
        return Progress(
            images=sum(s.images for s in seen),
            n_images=expected if isinstance(expected, int) else None,
            shards=len(seen),
            accepted=sum(s.accepted for s in seen),
            made=sum(s.made for s in seen),
            damaged=damaged,
            images_per_second=_rate(seen),
            complete=manifest["complete"] is True,
        )


def _look(path: Path) -> _Seen:
    entries = parse_shard(path.read_bytes(), path.parent)["images"]
    records = [e["record"] for e in entries if isinstance(e["record"], dict)]
    attempts = max((int(r.get("attempts", 1)) for r in records), default=1)
    judged = any("accepted" in r for r in records)
    accepted = sum(bool(r.get("accepted", True)) for r in records)
    return _Seen(path.stat().st_mtime, len(entries), accepted, attempts * len(entries) if judged else 0)


def _rate(seen: list[_Seen]) -> float | None:
    """Images a second from the times at which shards were written, latest first, back to the last pause."""
    recent = seen[-WINDOW:]
    images = gaps = 0.0
    count = 0
    for before, after in zip(recent[-2::-1], recent[:0:-1]):
        gap = after.written - before.written
        if count >= 3 and gap > PAUSE * max(gaps / count, 0.5):
            break
        images, gaps, count = images + after.images, gaps + gap, count + 1
    return images / gaps if gaps > 0 else None


def to_json(progress: Progress) -> str:
    """The fields, with what is left and the seconds to go, as json."""
    values = {name: getattr(progress, name) for name in progress.__dataclass_fields__}
    return json.dumps(values | {"left": progress.left, "eta_seconds": progress.eta_seconds}, indent=2)
