"""The lineage of runs as SVG, in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping

from detkd.runtime.report.charts import label
from detkd.runtime.report.lineage import Lineage, Node, layers
from detkd.runtime.report.markup import Html, element

# px: a node's width and least height, a line of its notes, gaps; four columns fit a window of 1200
_NODE, _LINE, _GAP, _BETWEEN = (218, 30), 17, 18, 90
_NAME, _NOTE = 25, 30  # characters that fit


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
    lines, names = [], []  # names over all lines
    for target, (x1, top, tall) in place.items():
        # edges end side by side, in the order of where they come from
        edges = sorted((e for e in lineage.edges if e.target == target), key=lambda e: place[e.source][1])
        for i, edge in enumerate(edges, 1):
            x0, y0 = place[edge.source][0] + _NODE[0], place[edge.source][1] + place[edge.source][2] / 2
            y1, middle = top + tall * i / (len(edges) + 1), x1 - _BETWEEN / 2
            d = f"M{x0:.0f} {y0:.0f}C{middle:.0f} {y0:.0f} {middle:.0f} {y1:.0f} {x1 - 6:.0f} {y1:.0f}"
            lines.append(element("path", {"class": f"edge {edge.by}", "d": d, "marker-end": "url(#arrow)"}))
            # at the end, where lines from one source have parted
            names.append(label(edge.what, x1 - 10, y1 - 4, "end", "edge-name"))
    boxes = [_node(node, place[node.key], targets.get(node.key)) for layer in columns for node in layer]
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
        lines,
        names,
        boxes,
    )


def _node(node: Node, place: tuple[float, float, float], target: str | None) -> Html:
    x, y, tall = place
    first = (
        f"{short(node.members[0], _NOTE - 9)} and more"
        if node.members
        else node.sha256[:12]
        if node.sha256
        else "hash not known"
    )
    lines = [first, *_notes(node)]
    said = f": {', '.join(node.members)}" if node.members else f", sha256 {node.sha256}" if node.sha256 else ""
    inside = [
        element("title", None, f"{node.kind} {node.name}{said}"),
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
        label(short(node.name, _NAME), x + 12, y + 20, "start", "node-name"),
        *(label(_clipped(line), x + 12, y + 20 + _LINE * (i + 1), "start", "node-note") for i, line in enumerate(lines)),
    ]
    return element("a", {"href": target}, inside) if target else element("g", None, inside)


def _notes(node: Node) -> list[str]:
    return node.notes if len(node.notes) <= 3 else [*node.notes[:2], f"and {len(node.notes) - 2} more"]


def _clipped(note: str) -> str:
    return note if len(note) <= _NOTE else f"{note[: _NOTE - 1]}…"


def short(text: str, most: int) -> str:
    """The text; of a longer one than ``most`` characters its end, which tells folders apart."""
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"
