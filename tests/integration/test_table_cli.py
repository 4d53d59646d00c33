"""python -m detkd.table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        folder = tmp_path / "runs" / str(seed)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"seed: {seed}\nlabels: real\n")
        (folder / "results.json").write_text(json.dumps({"ap50": seed / 10}))
    return tmp_path


@pytest.mark.parametrize(("rows", "shown"), [("[2,0]", ["2", "0"]), ("1", ["1"]), ("null", ["0", "1", "2"])])
def test_rows_that_are_numbers(command: Command, runs: Path, rows: str, shown: list[str]) -> None:
    keys = ["row_key=seed", f"rows={rows}", "column_key=labels", "columns=real"]
    command("table", "runs=runs", *keys, cwd=runs).ok()
    cells = json.loads((runs / "runs/table.json").read_text())["cells"]
    assert [(cell["row"], cell["column"], cell["mean"]) for cell in cells] == [(r, "real", int(r) / 10) for r in shown]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=[a,b]"], "runs: expected one folder with runs below it, like runs=runs/terms/students, found ['a', 'b']"),
        ([], "runs: expected one folder with runs below it, like runs=runs/terms/students, found none"),
        (["runs=runs", "digits=-1"], "digits: expected a whole number from 0 to 9, found -1"),
        (
            ["runs=runs", "row_key=seed", "column_key=labels", "plot=lines"],
            "plot=lines: expected columns that are numbers (labels), found ['real']",
        ),
        (
            ["runs=runs", "row_key=seed", "column_key=labels", "relative_to=3"],
            "relative_to: expected a row of the table, one of ['0', '1', '2'], found '3'",
        ),
    ],
)
def test_bad_arguments(command: Command, runs: Path, arguments: list[str], message: str) -> None:
    assert message in command("table", *arguments, cwd=runs).error()
    assert not (runs / "runs/table.json").exists()


def test_a_row_of_no_run_and_cells_relative_to_it(command: Command, runs: Path) -> None:
    given = ["row_key=labels", "column_key=seed", "constants={teacher: {0: 0.1, 2: 0.4}}", "relative_to=teacher", "plot=lines"]
    done = command("table", "runs=runs", *given, "out=made", cwd=runs).ok()
    assert "| teacher | 0.100 | – | 0.400 |" in done.stdout
    text = (runs / "made/table.md").read_text()
    assert "| real | 0.000 (1) | – | 0.500 (1) |" in text[text.index("## Relative to teacher") :]
    assert {path.name for path in (runs / "made").iterdir()} == {"table.md", "table.csv", "table.json", "table.png"}
    command("table", "runs=runs", *given[:2], "out=made", "plot=none", cwd=runs).ok()
    assert not (runs / "made/table.png").exists()


def test_a_name_that_is_no_text_is_printed_as_escapes(command: Command, runs: Path) -> None:
    (runs / "runs/0/config.yaml").write_text('seed: 0\nlabels: "\\uDCFF"\n')
    done = command("table", "runs=runs", "row_key=seed", "column_key=labels", cwd=runs).ok()
    assert r"\udcff" in done.stdout
    assert r"\udcff" in (runs / "runs/table.md").read_text()
