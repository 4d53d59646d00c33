"""HTML and SVG from plain text: whatever is no element already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

Value = str | int | float | bool | None


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


VOID = frozenset({"br", "img", "meta", "input", "image", "rect", "line", "polyline", "circle", "path"})


def element(tag: str, attributes: dict[str, Value] | None = None, *children: str | Html | Iterable[Html]) -> Html:
    """An element. Attributes that are None or False are left out, those that are True have no value."""
    parts = [f"<{tag}"]
    for key, value in (attributes or {}).items():
        if value is None or value is False:
            continue
        parts.append(f" {key}" if value is True else f' {key}="{escape(value)}"')
    if tag in VOID and not children:
        return Html("".join([*parts, "/>" if tag not in ("br", "img", "meta", "input") else ">"]))
    return Html("".join([*parts, ">", join(children), f"</{tag}>"]))


def join(children: Iterable[str | Html | Iterable[Html]]) -> Html:
    """Children one after the other, text escaped."""
    found = []
    for child in children:
        if isinstance(child, Html):
            found.append(str(child))
        elif isinstance(child, str):
            found.append(escape(child))
        else:
            found.append(join(child))
    return Html("".join(found))


def escape(value: Value) -> str:
    """Text that may stand in an element or in a quoted attribute; control characters and lone surrogates become question marks."""
    text = str(value).encode("utf-8", "replace").decode()
    return html.escape(
        "".join(c if c in "\t\n" or c.isprintable() or (c.isspace() and c > "\x7f") else "?" for c in text), quote=True
    )
