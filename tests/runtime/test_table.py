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
from detkd.runtime.table import Cell, Table, make_table
from detkd.runtime.table_runs import read_runs


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


def test_without_a_column_key_there_is_one_column(sweep: Path) -> None:
    table = make_table(read_runs(sweep, "ap50"), "row", None, "ap50")
    assert table.columns == ("ap50",)
    assert table.markdown(2).splitlines()[:3] == ["| row | ap50 |", "| --- | --- |", "| a | 0.28 ± 0.27 (4) |"]


def test_numbers_are_sorted_by_size_and_names_as_they_come(tmp_path: Path) -> None:
    for length in ("1024", "128", "64"):
        write_run(tmp_path / length, {"row": f"r{length}", "length": int(length)}, {"ap50": 0.5})
    table = make_table(read_runs(tmp_path, "ap50"), "row", "length", "ap50")
    assert (table.rows, table.columns) == (("r1024", "r128", "r64"), ("64", "128", "1024"))


def test_runs_without_value_are_told_from_unfinished_ones(tmp_path: Path) -> None:
    for seed, value in enumerate(("null", "NaN", "0.5", None)):
        write_run(tmp_path / str(seed), {"row": "a", "column": "x"}, None if value is None else f'{{"ap50": {value}}}')
    table = make_table(read_runs(tmp_path, "ap50"), "row", "column", "ap50")
    assert table.cell("a", "x").text(1) == "0.5 (1, 1 unfinished, 2 without value)"
    assert Cell((), (), ("run",)).text(1) == "– (1 without value)"
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["cells"][0]["valueless"] == [
        str(tmp_path / "0"),
        str(tmp_path / "1"),
    ]


def test_without_runs_all_that_is_listed_is_a_hole() -> None:
    table = make_table([], "row", "column", "ap50", rows=["a"], columns=["x", "y"])
    assert table.markdown(1).splitlines()[2] == "| a | – | – |"


def test_constants_are_the_first_rows_and_have_no_interval(sweep: Path) -> None:
    runs = read_runs(sweep, "ap50")
    table = make_table(runs, "row", "column", "ap50", constants={"teacher": {"y": 1.0}, "all": 0.25})
    lines = table.markdown(2).splitlines()
    assert lines[2:5] == ["| teacher | – | 1.00 |", "| all | 0.25 | 0.25 |", "| a | 0.20 ± 0.25 (3) | 0.50 (1) |"]
    assert "given, not found in runs (teacher, all)" in lines[-1]
    assert "teacher" not in table.csv()
    assert [cell["given"] for cell in table.to_json()["cells"]] == [False, True, True, True, False, False, False, False]
    with pytest.raises(InputError, match="constants: expected names that no row of runs has, found 'a'"):
        make_table(runs, "row", "column", "ap50", constants={"a": 1.0})
    with pytest.raises(InputError, match=r"constants.b: expected columns of \['x'\], found \['y'\]"):
        make_table(runs, "row", "column", "ap50", rows=["a"], columns=["x"], constants={"b": {"y": 1.0}})
    assert make_table([], "row", "column", "ap50", rows=["a"], constants={"t": {"z": 1.0}}).columns == ("z",)


def test_relative_to_a_row_cells_are_divided_by_its_means() -> None:
    cells = {
        ("t", "x"): Cell((0.5,), given=True),
        ("a", "x"): Cell((0.2, 0.3)),
        ("a", "y"): Cell((0.1,)),
        ("t", "z"): Cell((0.0,)),
    }
    table = Table("row", "column", "ap50", ("t", "a"), ("x", "y", "z"), {**cells, ("a", "z"): Cell((0.1,))})
    relative = table.relative("t")
    assert relative.cell("a", "x").values == pytest.approx((0.4, 0.6))
    assert relative.cell("a", "x").half_interval == pytest.approx(2 * (cells["a", "x"].half_interval or 0))
    assert relative.cell("t", "x").text(1) == "1.0"
    assert relative.cell("a", "y").mean is None  # the row has no value there
    assert relative.cell("a", "z").mean is None  # nothing is divided by zero
    text = table.relative_markdown("t", 1)
    assert text.startswith("## Relative to t\n\n| row | x | y | z |\n")
    assert "ap50 divided by the mean of t in the same column" in text
    written = table.to_json("t")["relative"]
    assert (written["to"], written["cells"][3]["mean"]) == ("t", pytest.approx(0.5))
    assert table.to_json()["relative"] is None
    with pytest.raises(InputError, match=r"relative_to: expected a row of the table, one of \['t', 'a'\], found 'b'"):
        table.relative("b")


def test_a_key_of_no_config_is_named(sweep: Path) -> None:
    with pytest.raises(InputError, match="nothing: expected a key of the runs' configs, found it in none of 6"):
        make_table(read_runs(sweep, "ap50"), "nothing", "column", "ap50")
