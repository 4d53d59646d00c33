"""Tables from what runs leave: csv files, and nested values of results.json."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detkd.errors import InputError
from detkd.runtime.report.blocks import Cell, Curves, Table

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DIGITS = 300  # what is longer is no number that a run wrote


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a csv. Raises InputError where it is none: no header, or rows of another length."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:  # UnicodeDecodeError and the lack of a header are ValueErrors
        raise InputError(f"{path}: expected a csv with a header, found none that can be read ({error})") from None
    if (wrong := next((i for i, row in enumerate(rows) if len(row) != len(header)), None)) is not None:
        raise InputError(f"{path}: expected {len(header)} columns in every row, found {len(rows[wrong])} in row {wrong + 1}")
    return header, rows


def csv_table(path: Path) -> Table:
    """A csv as a table under the file's name. Its first column names the rows, and stays text."""
    header, rows = read_csv(path)
    return Table(path.name, tuple(header), tuple((*row[:1], *map(cell_of, row[1:])) for row in rows))


def cell_of(text: str) -> Cell:
    """The number that a text is, else the text; nothing for the empty one.

    A number is written as json writes it. So names stay text that Python would take for numbers too: 000000397133, 1_000, infinity.
    """
    if _NUMBER.fullmatch(text) is None or len(text) > _DIGITS:
        return text or None
    value = float(text) if set(text) & set(".eE") else int(text)
    return value if math.isfinite(value) else text


def result_tables(results: Mapping[str, Any]) -> list[Table]:
    """All of a results.json: the plain values in one table, each mapping or list of mappings in one of its own."""
    plain = {key: value for key, value in results.items() if not isinstance(value, (Mapping, list)) or not value}
    tables = (
        [Table("Results", ("value of", "value"), tuple((key, plain_cell(value)) for key, value in plain.items()))]
        if plain
        else []
    )
    return tables + [nested_table(key, value) for key, value in results.items() if key not in plain]


def nested_table(title: str, value: Any) -> Table:
    """A mapping or list as a table: mappings in it are rows, what they hold (flattened by dots) the columns."""
    items = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
    if not all(isinstance(item, Mapping) for _, item in items):
        rows = tuple((str(name), plain_cell(item)) for name, item in items)
        return Table(title, ("name", "value"), rows)
    flat = [(str(name), flatten(item)) for name, item in items]
    columns = list(dict.fromkeys(key for _, row in flat for key in row))
    return Table(title, ("name", *columns), tuple((name, *(row.get(key) for key in columns)) for name, row in flat))


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """Nested mappings to one of cells, by dotted keys."""
    flat: dict[str, Cell] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        flat |= flatten(item, name) if isinstance(item, Mapping) and item else {name: plain_cell(item)}
    return flat


def plain_cell(value: Any) -> Cell:
    """A value of json as a cell; lists and mappings as text."""
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def log_curves(paths: Sequence[Path]) -> list[Curves]:
    """The columns of Lightning's metrics.csv over the step, each a chart; further files go on where the one before ended.

    Raises InputError for a file that is no such csv. Values that are no finite numbers are left out.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    offset = 0.0
    for path in paths:
        header, rows = read_csv(path)
        if "step" not in header:
            raise InputError(f"{path}: expected a column 'step', found {header[:10]}")
        place, last = header.index("step"), offset
        for row in rows:
            step = _number(row[place])
            if step is None:
                continue
            last = max(last, step + offset)
            for name, text in zip(header, row):
                if name not in ("step", "epoch") and (value := _number(text)) is not None:
                    lines.setdefault(name, []).append((step + offset, value))
        offset = last
    return [Curves(name, "step", {name: points}) for name, points in sorted(lines.items(), key=lambda item: _rank(item[0]))]


def _rank(name: str) -> tuple[int, str]:
    """Totals first, weights last."""
    return (0 if name in TOTALS else 2 if "/weight/" in name else 1), name


TOTALS = ("train/loss", "val/loss", "loss/total")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
