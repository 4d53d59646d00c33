"""Curves as SVG, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from detkd.runtime.report.blocks import Curves
from detkd.runtime.report.markup import Html, element

POINTS = 240  # of a line that are drawn
COLOURS = 8  # of lines, in the style sheet
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 360, 190, 52, 30, 10, 10

Point = tuple[float, float]


def curves_chart(curves: Curves) -> Html:
    """A chart with a legend where it has several lines. The y axis is logarithmic where positive values span a factor of 50."""
    lines = {name: thin(points) for name, points in curves.lines.items() if points}
    if not lines:
        return element("p", {"class": "muted"}, f"{curves.title}: no values.")
    x0, x1 = _span(x for points in lines.values() for x, _ in points)
    y0, y1 = _span(y for points in lines.values() for _, y in points)
    log = y0 > 0 and y1 / y0 > 50
    scale = (lambda y: math.log10(y)) if log else (lambda y: y)
    low, high = scale(y0), scale(y1)

    def place(point: Point) -> str:
        x = _LEFT + (point[0] - x0) / ((x1 - x0) or 1) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (scale(point[1]) - low) / ((high - low) or 1) * (_HEIGHT - _BOTTOM - _TOP)
        return f"{x:.1f},{y:.1f}"

    bottom, top, left, right = _HEIGHT - _BOTTOM, _TOP, _LEFT, _WIDTH - _RIGHT
    middle = 10 ** ((low + high) / 2) if log else (y0 + y1) / 2
    parts = [
        element("line", {"class": "axis", "x1": left, "x2": right, "y1": y, "y2": y}) for y in (top, (top + bottom) / 2, bottom)
    ]
    parts += [
        label(number(value), left - 6, y + 4, "end") for value, y in ((y1, top), (middle, (top + bottom) / 2), (y0, bottom))
    ]
    parts += [label(number(x0), left, _HEIGHT - 12, "start"), label(number(x1), right, _HEIGHT - 12, "end")]
    parts.append(label(curves.x + (", log y" if log else ""), (left + right) / 2, _HEIGHT - 12, "middle"))
    for i, points in enumerate(lines.values()):
        if len(points) == 1:
            x, y = place(points[0]).split(",")
            parts.append(element("circle", {"class": f"dot s{i % COLOURS}", "cx": x, "cy": y, "r": 3}))
        else:
            parts.append(element("polyline", {"class": f"curve s{i % COLOURS}", "points": " ".join(map(place, points))}))
    said = describe(curves.title, curves.lines)
    chart = element("svg", {"class": "chart", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": said}, parts)
    last = next(iter(lines.values()))[-1][1]
    course = f" last {number(last)}" if curves.x == "step" else ""
    caption = element("figcaption", None, curves.title, element("span", {"class": "muted"}, course))
    if len(lines) > 1:
        names = [element("li", None, element("i", {"class": f"swatch s{i % COLOURS}"}), name) for i, name in enumerate(lines)]
        note = f": {curves.note}" if curves.note else ""
        caption = element("figcaption", None, curves.title + note, element("ul", {"class": "legend"}, names))
    return element("figure", {"class": "chart-box"}, caption, chart)


def describe(title: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """What a chart shows, in words."""
    said = [
        f"{name} from {number(p[0][1])} to {number(p[-1][1])}, lowest {number(min(y for _, y in p))}"
        for name, p in lines.items()
        if p
    ]
    return f"{title}: {'; '.join(said)}"


def thin(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most ``most`` of the points, evenly spaced, first and last among them."""
    n = len(points)
    return list(points) if n <= most else [points[round(k * (n - 1) / (most - 1))] for k in range(most)]


def number(value: float) -> str:
    """A short number for an axis."""
    if abs(value) < 1e9 and (value == int(value) or abs(value) >= 1000):
        return f"{value:.0f}"
    return f"{value:.3g}"


def label(text: str, x: float, y: float, anchor: str, kind: str = "label") -> Html:
    """Text in a drawing. anchor: which end of it is at x."""
    return element("text", {"class": kind, "x": round(x, 1), "y": round(y, 1), "text-anchor": anchor}, text)


def _span(values: object) -> tuple[float, float]:
    found = list(values)  # type: ignore[call-overload]
    return min(found), max(found)
