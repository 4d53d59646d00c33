"""Darknet's .cfg format: text to sections and back.

A cfg is a list of sections, ``[kind]`` and ``key=value`` lines below; ``#`` and ``;`` open comments. The first section is [net].
As in darknet, the first of two equal keys in one section counts, and keys that nobody asks for are ignored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from detkd.errors import InputError


@dataclass(frozen=True)
class Section:
    """One section. where: "file, line 12 [convolutional]", for messages."""

    kind: str
    options: dict[str, str]
    where: str

    def text(self, key: str, default: str | None = None) -> str:
        """The value of ``key``. Raises InputError where it is missing and has no default."""
        if key in self.options:
            return self.options[key]
        if default is None:
            raise InputError(f"{self.where}: expected a line {key}=..., found none")
        return default

    def integer(self, key: str, default: int | None = None, minimum: int = 0) -> int:
        """The value of ``key`` as an int of at least ``minimum``."""
        value = self.text(key, None if default is None else str(default))
        return self._integer(key, value, minimum)

    def number(self, key: str, default: float) -> float:
        """The value of ``key`` as a finite float."""
        return self._number(key, self.text(key, repr(default)))

    def integers(self, key: str, minimum: int | None = None) -> list[int]:
        """The value of ``key`` as a comma-separated list of ints."""
        return [self._integer(key, v, minimum) for v in self._items(key)]

    def numbers(self, key: str) -> list[float]:
        """The value of ``key`` as a comma-separated list of finite floats."""
        return [self._number(key, v) for v in self._items(key)]

    def _items(self, key: str) -> list[str]:
        return [v for v in (part.strip() for part in self.text(key).split(",")) if v]

    def _integer(self, key: str, value: str, minimum: int | None) -> int:
        try:
            number = int(value)
        except ValueError:
            raise InputError(f"{self.where}: expected an integer for {key}, found {value!r}") from None
        if (minimum is not None and number < minimum) or abs(number) > 1_000_000:
            raise InputError(f"{self.where}: expected {key} from {minimum} to 1000000, found {number}")
        return number

    def _number(self, key: str, value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise InputError(f"{self.where}: expected a number for {key}, found {value!r}") from None
        if not math.isfinite(number):
            raise InputError(f"{self.where}: expected a finite number for {key}, found {value!r}")
        return number


def parse_cfg(text: str, source: str = "cfg") -> list[Section]:
    """Split the text of a cfg into sections, [net] first.

    Args:
        source: what to call the text in messages (a file name).

    Raises InputError, naming the line, on what is neither a section, an option nor a comment.
    """
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].split(";", 1)[0].strip()
        if not line:
            continue
        if line.startswith("["):
            if not line.endswith("]") or len(line) < 3:
                raise InputError(f"{source}, line {number}: expected a section like [convolutional], found {line!r}")
            kind = line[1:-1].strip().lower()
            sections.append(Section(kind, {}, f"{source}, line {number} [{kind}]"))
        elif "=" in line:
            if not sections:
                raise InputError(f"{source}, line {number}: expected [net] before any option, found {line!r}")
            key, value = (part.strip() for part in line.split("=", 1))
            sections[-1].options.setdefault(key, value)
        else:
            raise InputError(f"{source}, line {number}: expected key=value, [section] or a comment, found {line[:80]!r}")
    if not sections or sections[0].kind not in ("net", "network"):
        found = f"[{sections[0].kind}]" if sections else "nothing"
        raise InputError(f"{source}: expected [net] as the first section, found {found}")
    return sections


def format_cfg(sections: Sequence[Section]) -> str:
    """Write sections as the text of a cfg. ``parse_cfg(format_cfg(s))`` has the same kinds and options as ``s``."""
    blocks = ["\n".join([f"[{s.kind}]", *(f"{k}={v}" for k, v in s.options.items())]) for s in sections]
    return "\n\n".join(blocks) + "\n"


def with_classes(sections: Sequence[Section], classes: int) -> list[Section]:
    """The same network for another number of classes: [yolo] layers and the filters of the convolutions above them."""
    changed = [replace(s, options=dict(s.options)) for s in sections]
    for above, section in itertools.pairwise(changed):
        if section.kind != "yolo":
            continue
        anchors = len(section.integers("mask")) if "mask" in section.options else section.integer("num", minimum=1)
        section.options["classes"] = str(classes)
        above.options["filters"] = str(anchors * (classes + 5))
    return changed
