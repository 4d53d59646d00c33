"""Curves and lineage as SVG, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from detkd.runtime.report.blocks import Curves
from detkd.runtime.report.lineage import Lineage, Node, layers
from detkd.runtime.report.markup import Html, element

POINTS = 240  # of a line that are drawn
COLOURS = 8  # of lines, in the style sheet
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 360, 190, 52, 30, 10, 10
_NODE, _LINE, _GAP, _BETWEEN = (256, 26), 17, 18, 104  # px: a node's width and least height, a line of its notes, gaps

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
        _label(number(value), left - 6, y + 4, "end") for value, y in ((y1, top), (middle, (top + bottom) / 2), (y0, bottom))
    ]
    parts += [_label(number(x0), left, _HEIGHT - 12, "start"), _label(number(x1), right, _HEIGHT - 12, "end")]
    parts.append(_label(curves.x + (", log y" if log else ""), (left + right) / 2, _HEIGHT - 12, "middle"))
    for i, points in enumerate(lines.values()):
        if len(points) == 1:
            x, y = place(points[0]).split(",")
            parts.append(element("circle", {"class": f"dot s{i % COLOURS}", "cx": x, "cy": y, "r": 3}))
        else:
            parts.append(element("polyline", {"class": f"curve s{i % COLOURS}", "points": " ".join(map(place, points))}))
    said = describe(curves.title, curves.lines)
    chart = element("svg", {"class": "chart", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": said}, parts)
    last = next(iter(lines.values()))[-1][1]
    caption = element("figcaption", None, curves.title, element("span", {"class": "muted"}, f" last {number(last)}"))
    if len(lines) > 1:
        names = [element("li", None, element("i", {"class": f"swatch s{i % COLOURS}"}), name) for i, name in enumerate(lines)]
        caption = element("figcaption", None, curves.title, element("ul", {"class": "legend"}, names))
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
    return f"{int(value)}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def lineage_chart(lineage: Lineage, targets: Mapping[str, str]) -> Html:
    """Boxes from left to right in the order in which things were made, and arrows between them.

    targets: the address that a node leads to, by its key; nodes without are no links. Links by hash are whole lines, those by path dashed.
    """
    columns = layers(lineage)
    place: dict[str, tuple[float, float, float]] = {}  # left, top, height
    width, height = 0.0, 0.0
    for column, nodes in enumerate(columns):
        y = 0.0
        for node in nodes:
            tall = float(_NODE[1] + _LINE * (len(_notes(node)) + 1))
            place[node.key] = (column * (_NODE[0] + _BETWEEN), y, tall)
            y += tall + _GAP
        width, height = column * (_NODE[0] + _BETWEEN) + _NODE[0], max(height, y - _GAP)
    parts = []
    for target, (x1, top, tall) in place.items():
        # edges end side by side, in the order of where they come from
        edges = sorted((e for e in lineage.edges if e.target == target), key=lambda e: place[e.source][1])
        for i, edge in enumerate(edges, 1):
            x0, y0 = place[edge.source][0] + _NODE[0], place[edge.source][1] + place[edge.source][2] / 2
            y1, middle = top + tall * i / (len(edges) + 1), x1 - _BETWEEN / 2
            d = f"M{x0:.0f} {y0:.0f}C{middle:.0f} {y0:.0f} {middle:.0f} {y1:.0f} {x1 - 6:.0f} {y1:.0f}"
            parts.append(element("path", {"class": f"edge {edge.by}", "d": d, "marker-end": "url(#arrow)"}))
            # at the end, where lines from one source have parted
            parts.append(_label(edge.what, x1 - 10, y1 - 4, "end", "edge-name"))
    parts += [_node(node, place[node.key], targets.get(node.key)) for layer in columns for node in layer]
    arrow = element(
        "marker",
        {
            "id": "arrow",
            "viewBox": "0 0 8 8",
            "refX": 2,
            "refY": 4,
            "markerWidth": 8,
            "markerHeight": 8,
            "orient": "auto",
            "markerUnits": "userSpaceOnUse",
        },
        element("path", {"class": "tip", "d": "M0 0L8 4L0 8z"}),
    )
    box = f"-2 -2 {width + 4:.0f} {height + 4:.0f}"
    return element(
        "svg",
        {
            "class": "lineage",
            "viewBox": box,
            "width": round(width + 4),
            "height": round(height + 4),
            "role": "group",
            "aria-label": "Lineage; the same as a table below",
        },
        element("defs", None, arrow),
        parts,
    )


def _node(node: Node, place: tuple[float, float, float], target: str | None) -> Html:
    x, y, tall = place
    lines = [short(node.sha256[:12] if node.sha256 else "hash not known", 34), *_notes(node)]
    inside = [
        element("title", None, f"{node.kind} {node.name}" + (f", sha256 {node.sha256}" if node.sha256 else "")),
        element(
            "rect",
            {
                "class": f"node {node.kind}",
                "x": x,
                "y": y,
                "width": _NODE[0],
                "height": tall,
                "rx": 18 if node.kind == "set" else 5,
            },
        ),
        _label(short(node.name, 29), x + 12, y + 20, "start", "node-name"),
        *(_label(short(line, 35), x + 12, y + 20 + _LINE * (i + 1), "start", "node-note") for i, line in enumerate(lines)),
    ]
    return element("a", {"href": target}, inside) if target else element("g", None, inside)


def _notes(node: Node) -> list[str]:
    return node.notes if len(node.notes) <= 3 else [*node.notes[:2], f"and {len(node.notes) - 2} more"]


def short(text: str, most: int) -> str:
    """The text; of a longer one than ``most`` characters its end, which tells folders apart."""
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"


def _label(text: str, x: float, y: float, anchor: str, kind: str = "label") -> Html:
    return element("text", {"class": kind, "x": round(x, 1), "y": round(y, 1), "text-anchor": anchor}, text)


def _span(values: object) -> tuple[float, float]:
    found = list(values)  # type: ignore[call-overload]
    return min(found), max(found)
