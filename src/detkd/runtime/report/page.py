"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detkd.runtime.report.blocks import Block, Curves, Gallery, Picture, Table, Tree, is_number, text_of
from detkd.runtime.report.build import Report
from detkd.runtime.report.charts import curves_chart
from detkd.runtime.report.lineage_chart import lineage_chart
from detkd.runtime.report.lineage_groups import DRAWN, grouped
from detkd.runtime.report.markup import Html, Value, element, join
from detkd.runtime.report.read import Section
from detkd.runtime.report.room import Part, fitting, shown
from detkd.runtime.static import fill_page

LIMIT = 9_500_000  # bytes of a page; what does not fit is left out, and said
FRAME = 60_000  # bytes at most of the page around its content: style, script, policy
ROWS = 200  # of a run's own table that are shown
OPEN = 4  # runs at most that are unfolded from the start
_SOURCE = Path(__file__).with_name("page_source")


def report_page(report: Report, out: Path, limit: int = LIMIT) -> bytes:
    """The page of a report, to be written into the folder ``out``: links to runs and galleries are relative to it.

    The same bytes for the same runs at the same relative places. Pictures, then charts of single runs, their tables and those over
    all runs are left out where the page would have more than ``limit`` bytes.
    """
    whole = [*_problems(report), *_lineage(report)]
    summary = _summary(report)
    sections = [(_head(section, out), _parts(section, out)) for section in report.sections]

    def runs(kept: Collection[int]) -> list[Html]:
        return [
            _run(section, number, head, shown(parts, kept), len(sections))
            for number, (section, (head, parts)) in enumerate(zip(report.sections, sections), 1)
        ]

    room = limit - len(join([*whole, *runs(()), *shown(summary, ())]).encode()) - FRAME
    kept = fitting([*summary, *(part for _, parts in sections for part in parts)], room)
    if summary:
        whole.append(element("section", {"id": "scores"}, element("h2", None, "Side by side"), shown(summary, kept)))
    content = join([*whole, element("section", {"id": "runs"}, element("h2", None, "Runs"), runs(kept))])
    counts = Counter(section.run.kind for section in report.sections)
    about = f"{len(report.sections)} runs: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())
    about += f"; {len(report.problems)} note{'s' if len(report.problems) > 1 else ''} on damage" if report.problems else ""
    names = [("problems", "Not read")] if report.problems else []
    names += [("lineage", "Lineage")] if report.lineage.nodes else []
    names += [("scores", "Side by side")] if report.tables or report.charts else []
    parts = [element("li", None, element("a", {"href": f"#{key}"}, name)) for key, name in [*names, ("runs", "Runs")]]
    return fill_page(
        (_SOURCE / "report.html").read_text(encoding="utf-8"),
        style=(_SOURCE / "report.css").read_text(encoding="utf-8"),
        script=(_SOURCE / "report.js").read_text(encoding="utf-8"),
        images="data:",
        texts={"title": join([report.title]), "about": join([about]), "parts": join(parts), "content": content},
    )


def _problems(report: Report) -> list[Html]:
    if not report.problems:
        return []
    lines = [element("p", {"class": "warning"}, problem) for problem in report.problems]
    return [element("section", {"id": "problems"}, element("h2", None, "Not read"), lines)]


def _lineage(report: Report) -> list[Html]:
    lineage = report.lineage
    if not lineage.nodes:
        return []
    drawn = grouped(lineage)
    number = {id(section.run): f"#run-{i}" for i, section in enumerate(report.sections, 1)}
    targets = {key: number[id(node.runs[0])] for key, node in drawn.nodes.items() if node.runs}
    note = (
        "Blue boxes are detectors, rounded ones sets of images. A whole line means that the run recorded the sha256 "
        "of what it came from; a dashed one that only a path says so."
    )
    if len(drawn.nodes) > DRAWN:
        note = f"{len(lineage.nodes)} detectors and sets are too many to be drawn."
    elif drawn is not lineage:
        note += f" Of {len(lineage.nodes)} detectors and sets, those of the same sources are one box."
    inside = [element("h2", None, "Lineage"), element("p", {"class": "note"}, note)]
    inside += [element("p", {"class": "warning"}, warning) for warning in lineage.warnings]
    box: dict[str, Value] = {"class": "lineage-box", "tabindex": 0, "role": "region", "aria-label": "Lineage, drawn"}
    if len(drawn.nodes) <= DRAWN:
        inside.append(element("div", box, lineage_chart(drawn, targets)))
    if lineage.edges:
        summary = element("summary", None, "Lineage as a table" if drawn is not lineage else "The same as a table")
        whole: dict[str, Value] = {"open": len(drawn.nodes) > DRAWN}
        inside.append(element("details", whole, summary, _table(lineage.table(), heading=False)))
    return [element("section", {"id": "lineage"}, inside)]


def _summary(report: Report) -> list[Part]:
    parts = [Part(table.title, _table(table, rows=2000), 0) for table in report.tables]
    charts = element("div", {"class": "charts"}, [curves_chart(chart) for chart in report.charts])
    return [*parts, *([Part("Losses", charts, 0)] if report.charts else [])]


def _head(section: Section, out: Path) -> list[Html]:
    """What was run, with what: always shown."""
    run = section.run
    facts: list[tuple[str, Html | str]] = [("folder", _link(run.folder, out, str(run.folder)))]
    command, versions = run.found.get("command"), run.found.get("versions")
    facts.append(("command", element("code", None, str(command)) if command else "not recorded"))
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if run.set_sha256 is not None:
        facts.append(("sha256 of the set", element("code", None, run.set_sha256)))
    if run.manifest is not None and run.manifest["teacher_sha256"]:
        facts.append(("sha256 of its teacher", element("code", None, run.manifest["teacher_sha256"])))
    if run.results is None:
        facts.append(("state", "unfinished: there is no results.json"))
    pairs = [join([element("dt", None, name), element("dd", None, value)]) for name, value in facts]
    return [element("dl", {"class": "facts"}, pairs)]


def _parts(section: Section, out: Path) -> list[Part]:
    """The blocks of a run; neighbouring charts share a row."""
    parts: list[Part] = []
    charts: list[Curves] = []
    for block in [*section.blocks, *([Tree("Config", section.run.config)] if section.run.config else []), None]:
        if isinstance(block, Curves):
            charts.append(block)
            continue
        if charts:
            markup = join(
                [element("h4", None, "Curves"), element("div", {"class": "charts"}, [curves_chart(c) for c in charts])]
            )
            parts.append(Part("Curves", markup, 2))
            charts = []
        if block is not None:
            parts.append(Part(block.title, _block(block, out), 3 if isinstance(block, Gallery) else 1))
    return parts


def _block(block: Block, out: Path) -> Html:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Gallery):
        return _gallery(block, out)
    if isinstance(block, Tree):
        return element("details", None, element("summary", None, block.title), _tree(block.value))
    return curves_chart(block)


def _run(section: Section, number: int, head: Iterable[Html], blocks: Iterable[Html], runs: int) -> Html:
    run = section.run
    score = run.found.get("ap50", run.found.get("teacher_ap50"))
    said = f"{'AP50' if 'ap50' in run.found else 'teacher AP50'} {text_of(score)}" if is_number(score) else ""
    summary = element(
        "summary",
        None,
        element("h3", None, run.name),
        element("span", {"class": "tag"}, run.kind),
        element("span", {"class": "muted"}, said),
    )
    return element("details", {"class": "run", "id": f"run-{number}", "open": runs <= OPEN}, summary, head, blocks)


def _table(table: Table, rows: int = ROWS, heading: bool = True) -> Html:
    numeric = [any(is_number(row[i]) for row in table.rows) for i in range(len(table.header))]
    shown = table.rows[:rows]
    heads = [element("th", {"scope": "col", "class": "number" if n else None}, name) for name, n in zip(table.header, numeric)]
    body = [element("tr", None, [_cell(value, i == 0) for i, value in enumerate(row)]) for row in shown]
    whole = element(
        "table",
        {"data-sortable": len(shown) > 1},
        element("thead", None, element("tr", None, heads)),
        element("tbody", None, body),
    )
    box: dict[str, Value] = {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": table.title}
    note = table.note
    if len(shown) < len(table.rows):
        note = f"{note} The first {len(shown)} of {len(table.rows)} rows; all are in report.csv.".strip()
    return join(
        [
            *([element("h4", None, table.title)] if heading else []),
            *([element("p", {"class": "note"}, note)] if note else []),
            element("div", box, whole) if table.rows else element("p", {"class": "muted"}, "No rows."),
        ]
    )


def _cell(value: Any, first: bool) -> Html:
    number, text = is_number(value), text_of(value)
    kind = "number" if number else "long" if len(text) > 40 else None
    attributes: dict[str, Value] = {"class": kind, "data-number": repr(value) if number and text else None}
    return element("th" if first else "td", attributes | ({"scope": "row"} if first else {}), text)


def _gallery(gallery: Gallery, out: Path) -> Html:
    link = [" ", _link(gallery.link, out, "All of them")] if gallery.link is not None else []
    note = [element("p", {"class": "note"}, gallery.note, *link)] if gallery.note or link else []
    if gallery.link is None:
        return join([*note, [_wide(picture) for picture in gallery.pictures]])
    return join(
        [element("h4", None, gallery.title), *note, element("div", {"class": "gallery"}, [_thumb(p) for p in gallery.pictures])]
    )


def _wide(picture: Picture) -> Html:
    width, height = picture.size
    image = element("img", {"src": _data(picture), "alt": picture.caption, "width": width, "height": height})
    return element("figure", {"class": "wide"}, element("figcaption", None, picture.caption), image)


def _thumb(picture: Picture) -> Html:
    width, height = picture.size
    parts = [element("image", {"href": _data(picture), "width": width, "height": height})]
    size = max(5.0, width / 15)
    for box in picture.boxes:
        x1, y1, x2, y2 = (round(v, 1) for v in box.xyxy)
        rectangle = {"x": x1, "y": y1, "width": round(x2 - x1, 1), "height": round(y2 - y1, 1)}
        parts.append(element("rect", {**rectangle}, element("title", None, box.name)))
        parts.append(
            element("text", {"x": x1, "y": y1 - 2 if y1 > size + 2 else y1 + size, "font-size": round(size, 1)}, box.name)
        )
    said = f"{picture.caption}: " + (
        ", ".join(f"{n} {name}" for name, n in Counter(b.name for b in picture.boxes).items()) or "no box"
    )
    kind = "thumb pixels" if width < 100 else "thumb"
    view = element("svg", {"class": kind, "viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": said}, parts)
    return element("figure", None, view, element("figcaption", None, picture.caption.rsplit("shards/", 1)[-1]))


def _tree(value: Any) -> Html:
    """Nested lists, what holds more folded."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    lines = []
    for key, item in items:
        name = element("span", {"class": "key"}, f"{key}: ")
        if isinstance(item, (dict, list)) and item:
            lines.append(element("li", None, element("details", None, element("summary", None, str(key)), _tree(item))))
        else:
            lines.append(element("li", None, name, element("code", None, "null" if item is None else str(item))))
    return element("ul", {"class": "tree"}, lines)


def _data(picture: Picture) -> str:
    return f"data:{picture.media};base64,{base64.b64encode(picture.content).decode()}"


def _link(path: Path, out: Path, text: str) -> Html:
    """A relative link; the text alone where no relative path leads there."""
    try:
        relative = os.path.relpath(path.resolve(), out.resolve())
    except ValueError:  # on Windows, on another drive
        return element("span", None, text)
    return element("a", {"href": quote(os.fsencode(Path(relative).as_posix()))}, text)  # names may be bytes of any encoding
