"""A table of many runs: one value, by two keys of their configs, with means and intervals over what else varies."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detkd.errors import InputError
from detkd.runtime.table_runs import Run

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; more are taken for the last
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


@dataclass(frozen=True)
class Cell:
    """Values of the runs of one row and column.

    unfinished: folders of runs without results. valueless: folders of runs whose results have no number for the value.
    given: whether the one value is of no run, but was given.
    """

    values: tuple[float, ...]
    unfinished: tuple[str, ...] = ()
    valueless: tuple[str, ...] = ()
    given: bool = False

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def half_interval(self) -> float | None:
        """Half of the 95 % interval of the mean (Student's t); None for fewer than two values."""
        n = len(self.values)
        return _T[min(n - 1, len(_T)) - 1] * statistics.stdev(self.values) / math.sqrt(n) if n > 1 else None

    def text(self, digits: int) -> str:
        """ "mean ± half (n)"; a hole is "–", runs without results or value are counted, a value that was given stands alone."""
        counts = ((len(self.unfinished), "unfinished"), (len(self.valueless), "without value"))
        left = [f"{n} {what}" for n, what in counts if n]
        if self.mean is None:
            return f"– ({', '.join(left)})" if left else "–"
        if self.given:
            return f"{self.mean:.{digits}f}"
        half = "" if self.half_interval is None else f" ± {self.half_interval:.{digits}f}"
        return f"{self.mean:.{digits}f}{half} ({', '.join([str(len(self.values)), *left])})"


@dataclass(frozen=True)
class Table:
    """Cells by row and column, in the order in which they are to be shown; without a column_key there is one column, called as the value."""

    row_key: str
    column_key: str | None
    value_key: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]

    def cell(self, row: str, column: str) -> Cell:
        return self.cells.get((row, column), Cell(()))

    def markdown(self, digits: int = 3) -> str:
        """A table, and what its cells are."""
        note = f"{self.value_key}: mean ± half of the 95 % interval (Student's t; number of runs); – is a hole."
        given = [row for row in self.rows if any(self.cell(row, c).given for c in self.columns)]
        if given:
            note += f" Without a number of runs: given, not found in runs ({', '.join(given)})."
        return f"{self._grid(digits)}\n\n{note}\n"

    def relative_markdown(self, row: str, digits: int = 3) -> str:
        """A headed table of what :meth:`relative` gives."""
        note = f"{self.value_key} divided by the mean of {row} in the same column, which is taken as exact."
        return f"## Relative to {row}\n\n{self.relative(row)._grid(digits)}\n\n{note}\n"

    def _grid(self, digits: int) -> str:
        head = [self.row_key, *self.columns]
        lines = [_line(head), _line(["---"] * len(head))]
        lines += [_line([row, *(self.cell(row, c).text(digits) for c in self.columns)]) for row in self.rows]
        return "\n".join(lines)

    def relative(self, row: str) -> Table:
        """Each cell divided by the mean of ``row`` in its column; a hole where that is a hole or zero.

        Raises InputError where there is no such row.
        """
        if row not in self.rows:
            raise InputError(f"relative_to: expected a row of the table, one of {list(self.rows)}, found {row!r}")
        cells = {(r, c): _divided(cell, self.cell(row, c).mean) for (r, c), cell in self.cells.items()}
        return replace(self, cells=cells)

    def csv(self) -> str:
        """One line a run with a value."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([self.row_key, self.column_key or "column", self.value_key])
        for row in self.rows:
            for column in self.columns:
                cell = self.cell(row, column)
                writer.writerows([row, column, value] for value in cell.values if not cell.given)
        return out.getvalue()

    def to_json(self, relative_to: str | None = None) -> dict[str, Any]:
        """Json-able: keys, for each cell mean, half_interval, values, unfinished, valueless, given, and the same relative to a row."""
        relative = None if relative_to is None else {"to": relative_to, "cells": self.relative(relative_to)._json_cells()}
        keys = {"rows": self.row_key, "columns": self.column_key, "value": self.value_key}
        return {**keys, "cells": self._json_cells(), "relative": relative}

    def _json_cells(self) -> list[dict[str, Any]]:
        return [
            {"row": r, "column": c, "mean": cell.mean, "half_interval": cell.half_interval, "values": list(cell.values)}
            | {"unfinished": list(cell.unfinished), "valueless": list(cell.valueless), "given": cell.given}
            for r in self.rows
            for c in self.columns
            for cell in [self.cell(r, c)]
        ]


def make_table(
    runs: Sequence[Run],
    row_key: str,
    column_key: str | None,
    value_key: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    constants: Mapping[str, float | Mapping[str, float]] | None = None,
) -> Table:
    """Sort runs into cells.

    Args:
        row_key, column_key: dotted keys of the runs' configs; without the second there is one column.
        value_key: what the values are called.
        rows, columns: which to show, in this order; None for all: numbers by size, else in order of appearance.
        constants: rows of no run, shown first: one number for all columns, or a number by column.

    Raises InputError where a key is in no run's config (runs that lack it stay out of the table), or a constant has no place.
    """
    for key in (row_key, column_key):
        if runs and key is not None and not any(key in run.config for run in runs):
            raise InputError(f"{key}: expected a key of the runs' configs, found it in none of {len(runs)}")
    sorted_runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if row_key in run.config and (column_key is None or column_key in run.config):
            sorted_runs[str(run.config[row_key]), value_key if column_key is None else str(run.config[column_key])].append(run)
    cells = {place: _cell(of) for place, of in sorted_runs.items()}
    constants = constants or {}
    by_name = [str(c) for of in constants.values() if isinstance(of, Mapping) for c in of]
    if column_key is None:
        columns = [value_key]
    shown_columns = tuple(columns) if columns else _ordered([*(c for _, c in cells), *by_name])
    shown_rows = tuple(rows) if rows else _ordered(r for r, _ in cells)
    for name, of in constants.items():
        if name in shown_rows or any(name == row for row, _ in cells):
            raise InputError(f"constants: expected names that no row of runs has, found {name!r}")
        given = {str(c): v for c, v in of.items()} if isinstance(of, Mapping) else dict.fromkeys(shown_columns, of)
        if unknown := [c for c in given if c not in shown_columns]:
            raise InputError(f"constants.{name}: expected columns of {list(shown_columns)}, found {unknown}")
        cells |= {(name, column): Cell((value,), given=True) for column, value in given.items()}
    return Table(row_key, column_key, value_key, (*constants, *shown_rows), shown_columns, cells)


def number(name: str) -> float | None:
    """A name of a row or column as a finite number; None where it is none."""
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: numbers by size, else in order of appearance."""
    once = list(dict.fromkeys(names))
    numbers = {name: value for name in once if (value := number(name)) is not None}
    return tuple(sorted(once, key=numbers.__getitem__) if len(numbers) == len(once) else once)


def _cell(runs: Sequence[Run]) -> Cell:
    return Cell(
        tuple(run.value for run in runs if run.value is not None),
        tuple(str(run.folder) for run in runs if not run.finished),
        tuple(str(run.folder) for run in runs if run.finished and run.value is None),
    )


def _divided(cell: Cell, by: float | None) -> Cell:
    return replace(cell, values=tuple(value / by for value in cell.values) if by else ())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"
