from __future__ import annotations

import csv
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from detkd.errors import InputError
from detkd.runtime.table import Cell, flatten, make_table, read_runs


def write_run(folder: Path, config: dict[str, Any], results: Any = None) -> None:
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    if results is not None:
        (folder / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    values = {("a", "x"): [0.1, 0.3, 0.2], ("a", "y"): [0.5], ("b|c", "x"): [None, 0.25]}
    for (row, column), found in values.items():
        for seed, value in enumerate(found):
            config = {"row": row, "column": column, "seed": seed, "loss": {"ssim": {"weight": 2.0}}}
            write_run(tmp_path / row / column / str(seed), config, None if value is None else {"ap50": value})
    return tmp_path


def test_cells_are_means_and_intervals_over_seeds(sweep: Path) -> None:
    table = make_table(read_runs(sweep, "ap50"), "row", "column", "ap50")
    assert (table.rows, table.columns) == (("a", "b|c"), ("x", "y"))
    cell = table.cell("a", "x")
    assert cell.mean == pytest.approx(0.2)
    # t of .975 at two degrees of freedom, from a printed table
    assert cell.half_interval == pytest.approx(4.3027 * statistics.stdev([0.1, 0.3, 0.2]) / math.sqrt(3), rel=1e-3)
    assert table.cell("a", "y").half_interval is None
    assert table.cell("b|c", "y").values == ()


def test_markdown_shows_holes_and_unfinished_runs_and_escapes(sweep: Path) -> None:
    lines = make_table(read_runs(sweep, "ap50"), "row", "column", "ap50").markdown(2).splitlines()
    assert lines[0] == "| row | x | y |"
    assert lines[2] == "| a | 0.20 ± 0.25 (3) | 0.50 (1) |"
    assert lines[3] == r"| b\|c | 0.25 (1, 1 unfinished) | – |"
    assert Cell((), ("run",)).text(2) == "– (1 unfinished)"


def test_csv_and_json_hold_every_value(sweep: Path) -> None:
    table = make_table(read_runs(sweep, "ap50"), "row", "column", "ap50")
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [
        ["row", "column", "ap50"],
        *(["a", "x", v] for v in ("0.1", "0.3", "0.2")),
        ["a", "y", "0.5"],
        ["b|c", "x", "0.25"],
    ]
    cells = json.loads(json.dumps(table.to_json()))["cells"]
    assert len(cells) == 4
    assert cells[2]["unfinished"] == [str(sweep / "b|c" / "x" / "0")]


def test_rows_and_columns_can_be_chosen_and_any_key_be_one(sweep: Path) -> None:
    runs = read_runs(sweep, "ap50")
    assert make_table(runs, "row", "column", "ap50", rows=["c", "a"], columns=["y"]).markdown(1).splitlines()[2] == "| c | – |"
    assert make_table(runs, "loss", "seed", "ap50").rows == ("ssim",)
    assert flatten({"a": {"b": [1, 2], "c": None}}) == {"a": "b,c", "a.b": "1,2", "a.c": None}


def test_mistakes_are_named(sweep: Path, tmp_path: Path) -> None:
    runs = read_runs(sweep, "ap50")
    with pytest.raises(InputError, match="nothing: expected a key of the runs' configs, found it in none of 6"):
        make_table(runs, "nothing", "column", "ap50")
    with pytest.raises(InputError, match=r"results.json: expected results with 'ap', found KeyError"):
        read_runs(sweep, "ap")
    with pytest.raises(InputError, match=r"expected runs \(folders with a config.yaml\), found none"):
        read_runs(sweep / "a" / "empty", "ap50")
    write_run(tmp_path / "broken", {"row": 1}, "{")
    with pytest.raises(InputError, match=r"broken.results.json: expected results with 'ap50'"):
        read_runs(tmp_path / "broken", "ap50")
    write_run(tmp_path / "text", {"row": 1}, {"ap50": "high"})
    with pytest.raises(InputError, match="expected a number as 'ap50', found 'high'"):
        read_runs(tmp_path / "text", "ap50")
