from __future__ import annotations

from pathlib import Path

import pytest

from detkd.errors import InputError
from detkd.runtime.report.blocks import text_of
from detkd.runtime.report.tables import cell_of, csv_table, log_curves, nested_table, result_tables


def test_a_csv_is_a_table_of_numbers_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('name,x,y\n"<b>, ü",1,0.5\nb,,-2e3\n', encoding="utf-8")
    table = csv_table(tmp_path / "a.csv")
    assert table.header == ("name", "x", "y")
    assert table.rows == (("<b>, ü", 1, 0.5), ("b", None, -2000.0))


@pytest.mark.parametrize("content", [b"", b"a,b\n1\n", b"\xff\xfe\n"])
def test_what_is_no_csv_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.csv: expected"):
        csv_table(tmp_path / "a.csv")


def test_nested_results_become_tables_of_their_own() -> None:
    results = {
        "images": 4,
        "empty": {},
        "per_class": {"cat": 0.5, "dog": None},
        "students": {"a": {"d": {"in": 1, "out": 2}}, "b": {"x": 3}},
    }
    plain, classes, students = result_tables(results)
    assert plain.rows == (("images", 4), ("empty", "{}"))
    assert (classes.title, classes.rows) == ("per_class", (("cat", 0.5), ("dog", None)))
    assert students.header == ("name", "d.in", "d.out", "x")
    assert students.rows == (("a", 1, 2, None), ("b", None, None, 3))
    assert nested_table("t", [{"a": 1}, {"a": 2}]).rows == (("0", 1), ("1", 2))
    assert nested_table("t", [1, [2]]).rows == (("0", 1), ("1", "[2]"))
    assert result_tables({}) == []


def test_logs_of_several_starts_go_on_after_each_other_totals_first(tmp_path: Path) -> None:
    (tmp_path / "metrics.1.csv").write_text("epoch,step,train/mimic,train/loss\n0,1,5,3\n0,2,nan,2\n")
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,train/weight/mimic\n0,1,1,1\n0,2,,inf\n")
    charts = log_curves([tmp_path / "metrics.1.csv", tmp_path / "metrics.csv"])
    assert [chart.title for chart in charts] == ["train/loss", "train/mimic", "train/weight/mimic"]
    assert charts[0].lines["train/loss"] == [(1, 3), (2, 2), (3, 1)]
    assert charts[1].lines["train/mimic"] == [(1, 5)]
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected a column 'step'"):
        log_curves([tmp_path / "metrics.csv"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (3, "3"),
        (0.5, "0.500"),
        (1.0, "1.000"),
        (12.0, "12"),
        (1234.567, "1235"),
        (1e-05, "1e-05"),
        ("<b>", "<b>"),
        (18000.53, "18001"),
        (-123456789.5, "-123456790"),
        (2.5e17, "2.5e+17"),
        (float("nan"), ""),
        (float("-inf"), ""),
        (0.0, "0.000"),
    ],
)
def test_cells_as_a_reader_sees_them(value: object, text: str) -> None:
    assert text_of(value) == text  # type: ignore[arg-type]


def test_text_that_is_no_number_stays_text() -> None:
    assert [cell_of(text) for text in ("7", "7.5", "x7", "", "-2e3", "0", "0.5")] == [7, 7.5, "x7", None, -2000.0, 0, 0.5]
    for name in ("000000397133", "1_000", "infinity", "nan", "1e999", "٣", "+1", "1\n", "1" * 5000, " 1", "-"):
        assert cell_of(name) == name


def test_the_first_column_names_rows_and_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_id,n\n397133,000000397133\n,2\n")
    assert csv_table(tmp_path / "a.csv").rows == (("397133", "000000397133"), ("", 2))
