"""What a report is made of: plain values, which the page, the csv, the json and the Markdown each show in their way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under a header, each as long as it. The first column names the row. note: what a reader must know of the numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines over a common x. lines: (x, y) points by name, x rising. note: what a reader must know of them."""

    title: str
    x: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    note: str = ""


@dataclass(frozen=True)
class Box:
    """A box xyxy in pixels of its picture, and what it is of."""

    xyxy: tuple[float, float, float, float]
    name: str


@dataclass(frozen=True)
class Picture:
    """An encoded image. media: its type, like image/jpeg. size: (width, height) in pixels."""

    caption: str
    media: str
    content: bytes
    size: tuple[int, int]
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side. link: a page or folder that has all of them."""

    title: str
    pictures: tuple[Picture, ...]
    note: str = ""
    link: Path | None = None


@dataclass(frozen=True)
class Tree:
    """Nested mappings and lists of plain values, to be unfolded."""

    title: str
    value: Any


Block = Table | Curves | Gallery | Tree


def is_number(value: object) -> bool:
    """Whether a cell is a number to sort and to align by; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def text_of(value: Cell) -> str:
    """A cell as a reader sees it: fractions with 3 digits, others with 4 that count or whole; nothing for None, NaN and infinity."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        if abs(value) < 1e15 and value == int(value):
            return f"{value:.3f}" if abs(value) <= 1 else f"{int(value)}"
        if 1000 <= abs(value) < 1e15:
            return f"{value:.0f}"
        return f"{value:.3f}" if 0.001 <= abs(value) < 1 else f"{value:.4g}"
    return str(value)
