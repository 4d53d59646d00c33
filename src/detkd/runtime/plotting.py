"""What figures share: text that is drawn as it is, colours, and files that are the same each time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from detkd.disk import replacing


def shown(text: str, longest: int = 40) -> str:
    """Text of unknown origin as matplotlib draws it literally: no formulas, no line breaks, none hidden by a leading underscore."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def file_name(number: int, text: str) -> str:
    """A PNG's name for text of unknown origin: its number, and the letters and digits of it that any system takes."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9-]+', '_', text)[:40].strip('_')}".rstrip("_") + ".png"


def colour(number: int) -> Any:
    """One of ten, by number."""
    return matplotlib.colormaps["tab10"](number % 10)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all, the same bytes for the same figure."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
