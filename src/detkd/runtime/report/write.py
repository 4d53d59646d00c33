"""A report on disk: the page, and the same numbers as csv, json and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detkd.data.escape import markdown_text
from detkd.disk import replace_file
from detkd.errors import InputError
from detkd.runtime.report.blocks import Cell, Curves, Table, text_of
from detkd.runtime.report.build import Report
from detkd.runtime.report.page import report_page
from detkd.runtime.run import write_json, write_text

FORMAT, VERSION = "detkd.report", 1


def write_report(report: Report, out: Path) -> Path:
    """Write report.html, report.csv, report.json and report.md into ``out``; the path of the page.

    Raises InputError where ``out`` is no folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder to write to, found a file")
    page = report_page(report, out)
    write_json(out / "report.json", report_json(report))
    write_text(out / "report.csv", report_csv(report))
    write_text(out / "report.md", report_markdown(report))
    replace_file(out / "report.html", page)
    return out / "report.html"


def report_csv(report: Report) -> str:
    """One line a cell: run (empty for tables over several), table, row, column, value. Curves are tables with a row a step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "table", "row", "column", "value"])
    for run, table in _tables(report):
        for row in table.rows:
            for column, value in zip(table.header[1:], row[1:]):
                writer.writerow([_encodable(run), *map(_encodable, (table.title, row[0], column, value))])
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Curves):
                for name, points in block.lines.items():
                    writer.writerows(
                        [_encodable(section.run.name), "curves", _whole(x), _encodable(name), repr(y)] for x, y in points
                    )
    return text.getvalue()


def report_json(report: Report) -> dict[str, Any]:
    """All numbers, json-able: runs with config and results, tables, curves, lineage, and what was not read."""
    runs = [
        {
            "name": section.run.name,
            "kind": section.run.kind,
            "folder": str(section.run.folder),
            "set_sha256": section.run.set_sha256,
            "config": section.run.config,
            "results": section.run.results,
            "curves": {n: [list(p) for p in of] for b in section.blocks if isinstance(b, Curves) for n, of in b.lines.items()},
        }
        for section in report.sections
    ]
    lineage = {
        "nodes": [
            {
                "key": n.key,
                "kind": n.kind,
                "name": n.name,
                "sha256": n.sha256,
                "runs": [r.name for r in n.runs],
                "notes": n.notes,
            }
            for n in report.lineage.nodes.values()
        ],
        "edges": [{"source": e.source, "target": e.target, "what": e.what, "by": e.by} for e in report.lineage.edges],
        "warnings": report.lineage.warnings,
    }
    tables = [
        {"run": run or None, "title": table.title, "header": list(table.header), "rows": [list(row) for row in table.rows]}
        for run, table in _tables(report)
    ]
    whole = {"format": FORMAT, "version": VERSION, "title": report.title, "runs": runs, "tables": tables, "lineage": lineage}
    return _plain(whole | {"not_read": list(report.problems)})


def report_markdown(report: Report) -> str:
    """Tables over several runs, then those of each run."""
    lines = [f"# {markdown_text(report.title)}", ""]
    lines += [f"- not read: {markdown_text(problem)}" for problem in report.problems]
    lines += [f"- warning: {markdown_text(warning)}" for warning in report.lineage.warnings]
    run = ""
    for of, table in _tables(report):
        if of != run:
            run = of
            lines += ["", f"## {markdown_text(run)}"]
        lines += ["", f"### {markdown_text(table.title)}", ""]
        lines += [_line(table.header), _line(["---"] * len(table.header)), *(_line(map(text_of, row)) for row in table.rows)]
        lines += ["", markdown_text(table.note)] if table.note else []
    return "\n".join(lines).encode("utf-8", "replace").decode() + "\n"


def _tables(report: Report) -> Iterator[tuple[str, Table]]:
    if report.lineage.edges:
        yield "", report.lineage.table()
    for table in report.tables:
        yield "", table
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Table):
                yield section.run.name, block


def _line(cells: Any) -> str:
    return "| " + " | ".join(cell if cell == "---" else markdown_text(str(cell)) for cell in cells) + " |"


def _plain(value: Any) -> Any:
    """The value with None for numbers that json does not have, and text for what is no json."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _encodable(value: Cell) -> Cell:
    """The value as a csv holds it: no lone surrogates, and nothing for a number that json does not have either."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _whole(value: float) -> str:
    """A step with all its digits, as a whole number where it is one."""
    return str(int(value)) if value == int(value) else repr(value)
