"""Names from a data set, made safe for the formats that they are written into."""

from __future__ import annotations

import json
import re
from typing import Any

# What YAML 1.1 takes as it is inside double quotes, less its line breaks (NEL, LS, PS) and the byte order mark.
_UNSAFE_IN_YAML = re.compile("[^ -~\u00a0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_SPECIAL_IN_MARKDOWN = re.compile(r"([\\`*_\[\]<>#!|~&$:@])")


def one_line(text: str) -> str:
    """The text without line breaks and control characters, each a space; lone surrogates become question marks."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text.encode("utf-8", "replace").decode())


def yaml_string(text: str) -> str:
    """A double-quoted YAML scalar that every YAML 1.1 and 1.2 reader takes for this text, whatever is in it.

    Lone surrogates, which no file can hold, become question marks.
    """
    quoted = json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
    return _UNSAFE_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def markdown_text(text: str) -> str:
    """The text on one line, for a table cell or the middle of a line of Markdown: no markup, HTML, cell or formula comes of it."""
    return _SPECIAL_IN_MARKDOWN.sub(r"\\\1", one_line(text)).strip()


def markdown_code(text: str) -> str:
    """The text on one line as inline code that may stand in a table cell."""
    text = one_line(text).replace("|", r"\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def script_json(value: Any) -> str:
    """Json that may stand in a script, in a file of any encoding: ASCII alone, and no "<" that could end or comment the script.

    Raises ValueError for numbers that json does not have.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
