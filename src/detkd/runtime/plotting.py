"""What figures share: text that is drawn as it is, colours, and files that are the same each time."""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from detkd.disk import replacing

# Where matplotlib's own font has no glyph: for Chinese, Japanese and Korean, then for other scripts; of Linux, macOS and Windows.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "Source Han Sans JP", "Noto Sans SC"),
    *(
        "Noto Sans JP",
        "Noto Sans KR",
        "WenQuanYi Zen Hei",
        "WenQuanYi Micro Hei",
        "Droid Sans Fallback",
        "IPAGothic",
        "NanumGothic",
    ),
    *(
        "PingFang SC",
        "Hiragino Sans",
        "Apple SD Gothic Neo",
        "Microsoft YaHei",
        "SimHei",
        "Yu Gothic",
        "MS Gothic",
        "Malgun Gothic",
    ),
    *("Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai", "Noto Emoji"),
    *("Arial Unicode MS", "Unifont"),
)


@cache
def families() -> list[str]:
    """The font families to draw text with: matplotlib's own, then those of ``FALLBACKS`` that this machine has."""
    there = set(font_manager.get_font_names())
    return ["sans-serif", *(name for name in FALLBACKS if name in there)]


def shown(text: str, longest: int = 40) -> str:
    """Text of unknown origin as matplotlib draws it literally: no formulas, no line breaks, none hidden by a leading underscore.

    Parts of file names that are no text are escaped.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def file_name(number: int, text: str) -> str:
    """A PNG's name for text of unknown origin: its number, and the letters and digits of it that any system takes."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9-]+', '_', text)[:40].strip('_')}".rstrip("_") + ".png"


# told apart by eyes of every kind: M. Okabe and K. Ito, Color Universal Design, 2008; without yellow, which is pale on white
_DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "osD^vPX"


def distinct(number: int) -> str:
    """One of seven for the colour-blind too, by number."""
    return _DISTINCT[number % len(_DISTINCT)]


def marker(number: int) -> str:
    """A marker by number: one of seven, that of :func:`distinct` and this together one of 49."""
    return _MARKERS[(number + number // len(_MARKERS)) % len(_MARKERS)]


def colour(number: int) -> Any:
    """One of ten, by number."""
    return matplotlib.colormaps["tab10"](number % 10)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all, the same bytes for the same figure and fonts; a character that no font has is a box."""
    for text in figure.findobj(Text):
        text.set_fontfamily(families())
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format="png", metadata={"Software": None})
