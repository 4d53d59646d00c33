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
