"""A table of many runs: one value, by two keys of their configs, with means and intervals over what else varies."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from detkd.errors import InputError
from detkd.runtime.run import CONFIG_FILE, RESULTS_FILE

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; more are taken for the last
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


@dataclass(frozen=True)
class Run:
    """One finished or unfinished run: its folder, the flattened config by dotted key, and its value (None where it has no results)."""

    folder: Path
    config: dict[str, Any]
    value: float | None


@dataclass(frozen=True)
class Cell:
    """Values of the runs of one row and column, and the folders of runs without results."""

    values: tuple[float, ...]
    unfinished: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def half_interval(self) -> float | None:
        """Half of the 95 % interval of the mean (Student's t); None for fewer than two values."""
        n = len(self.values)
        return _T[min(n - 1, len(_T)) - 1] * statistics.stdev(self.values) / math.sqrt(n) if n > 1 else None

    def text(self, digits: int) -> str:
        """ "mean ± half (n)"; a hole is "–", runs without results are counted."""
        if self.mean is None:
            return f"– ({len(self.unfinished)} unfinished)" if self.unfinished else "–"
        half = "" if self.half_interval is None else f" ± {self.half_interval:.{digits}f}"
        left = f", {len(self.unfinished)} unfinished" if self.unfinished else ""
        return f"{self.mean:.{digits}f}{half} ({len(self.values)}{left})"


@dataclass(frozen=True)
class Table:
    """Cells by row and column, in the order in which they are to be shown."""

    row_key: str
    column_key: str
    value_key: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]

    def cell(self, row: str, column: str) -> Cell:
        return self.cells.get((row, column), Cell(()))

    def markdown(self, digits: int = 3) -> str:
        """A table, and what its cells are."""
        head = [self.row_key, *self.columns]
        lines = [_line(head), _line(["---"] * len(head))]
        lines += [_line([row, *(self.cell(row, c).text(digits) for c in self.columns)]) for row in self.rows]
        note = f"{self.value_key}: mean ± half of the 95 % interval (Student's t; number of runs); – is a hole."
        return "\n".join([*lines, "", note]) + "\n"

    def csv(self) -> str:
        """One line a run with a value."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([self.row_key, self.column_key, self.value_key])
        for row in self.rows:
            for column in self.columns:
                writer.writerows([row, column, value] for value in self.cell(row, column).values)
        return out.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Json-able: keys, and for each cell mean, half_interval, values, unfinished."""
        cells = [
            {"row": r, "column": c, "mean": cell.mean, "half_interval": cell.half_interval}
            | {"values": list(cell.values), "unfinished": list(cell.unfinished)}
            for r in self.rows
            for c in self.columns
            for cell in [self.cell(r, c)]
        ]
        return {"rows": self.row_key, "columns": self.column_key, "value": self.value_key, "cells": cells}


def read_runs(root: str | Path, value_key: str) -> list[Run]:
    """All runs below a folder, in order of their paths: every folder with a config.yaml.

    Raises InputError where the folder has none, or a results.json lacks the key or is damaged.
    """
    found = [_read_run(path.parent, value_key) for path in sorted(Path(root).rglob(CONFIG_FILE))]
    if not found:
        raise InputError(f"{root}: expected runs (folders with a {CONFIG_FILE}), found none")
    return found


def make_table(
    runs: Sequence[Run],
    row_key: str,
    column_key: str,
    value_key: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Table:
    """Sort runs into cells.

    Args:
        row_key, column_key: dotted keys of the runs' configs.
        value_key: what the values are called. rows, columns: which to show, in this order; None for all, in order of appearance.

    Raises InputError where a key is in no run's config; runs that lack it stay out of the table.
    """
    for key in (row_key, column_key):
        if not any(key in run.config for run in runs):
            raise InputError(f"{key}: expected a key of the runs' configs, found it in none of {len(runs)}")
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    unfinished: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in runs:
        if row_key in run.config and column_key in run.config:
            place = str(run.config[row_key]), str(run.config[column_key])
            if run.value is None:
                unfinished[place].append(str(run.folder))
            else:
                values[place].append(run.value)
    places = dict.fromkeys([*values, *unfinished])
    cells = {place: Cell(tuple(values[place]), tuple(unfinished[place])) for place in places}
    return Table(
        row_key,
        column_key,
        value_key,
        tuple(rows or dict.fromkeys(row for row, _ in places)),
        tuple(columns or dict.fromkeys(column for _, column in places)),
        cells,
    )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one, by dotted keys; lists are joined by commas, and a dict's own key holds the names in it."""
    if isinstance(config, Mapping):
        inner = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in config.items()]
        own = {prefix: ",".join(map(str, config))} if prefix else {}
        return own | {k: v for part in inner for k, v in part.items()}
    return {prefix: ",".join(map(str, config)) if isinstance(config, list) else config}


def _read_run(folder: Path, value_key: str) -> Run:
    try:
        config = flatten(OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE)))
    except Exception as error:
        raise InputError(
            f"{folder / CONFIG_FILE}: expected the config of a run, found {type(error).__name__}: {error}"
        ) from None
    path = folder / RESULTS_FILE
    if not path.is_file():
        return Run(folder, config, None)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        value = results[value_key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected results with {value_key!r}, found {type(error).__name__}: {error}") from None
    if value is not None and not isinstance(value, (int, float)):
        raise InputError(f"{path}: expected a number as {value_key!r}, found {value!r}")
    return Run(folder, config, None if value is None else float(value))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"
