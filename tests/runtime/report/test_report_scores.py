from __future__ import annotations

from pathlib import Path
from typing import Any

from detkd.runtime.report.blocks import Curves
from detkd.runtime.report.charts import curves_chart
from detkd.runtime.report.runs import Run
from detkd.runtime.report.scores import loss_comparison, other_table, score_tables, set_table


def scored(name: str, ap50: float | None, kind: str = "evaluate", config: dict[str, Any] | None = None, **more: Any) -> Run:
    return Run(name, Path("/runs") / name, kind, config or {"data": {"root": "/data/x"}}, {"ap50": ap50, "images": 3} | more)


def test_runs_scored_on_the_same_boxes_share_a_table_wherever_they_lie() -> None:
    runs = [
        scored("a", 0.5, scored_sha256="1" * 64),
        scored("b", 0.25, scored_sha256="1" * 64, config={"data": {"root": "/elsewhere"}}),
        scored("c", 0.75, "distill", scored_sha256="1" * 64),
    ]
    (table,) = score_tables(runs)
    assert [row[0] for row in table.rows] == ["a", "b", "c"]
    assert [row[table.header.index("ap50")] for row in table.rows] == [0.5, 0.25, 0.75]
    assert "do not compare" not in table.note


def test_runs_on_other_sets_are_apart_and_it_is_said() -> None:
    runs = [scored("a", 0.5, scored_sha256="1" * 64), scored("b", 0.25, scored_sha256="2" * 64)]
    tables = score_tables(runs)
    assert [[row[0] for row in table.rows] for table in tables] == [["a"], ["b"]]
    assert all("do not compare across tables" in table.note for table in tables)
    assert [table.title[-8:] for table in tables] == ["(1 of 2)", "(2 of 2)"]


def test_another_set_is_claimed_only_where_all_recorded_theirs() -> None:
    runs = [scored("a", 0.5, scored_sha256="1" * 64), scored("b", 0.25, scored_sha256="2" * 64), scored("c", 0.4)]
    first, second, unknown = (table.note for table in score_tables(runs))
    assert "another set than the other tables that recorded theirs; the rest may be of the same set" in first
    assert first == second
    assert "may be of the same set: not recorded" in unknown
    assert not any("do not compare" in note for note in (first, second, unknown))
    assert "other tables" not in score_tables(runs[:1])[0].note.lower()


def test_without_a_hash_the_place_decides_and_it_is_said() -> None:
    runs = [scored("a", 0.5), scored("b", 0.4), scored("c", 0.3, config={"data": {"root": "/data/y"}})]
    tables = score_tables(runs)
    assert [[row[0] for row in table.rows] for table in tables] == [["a", "b"], ["c"]]
    assert "was not recorded" in tables[0].note
    held = [scored(n, 0.5, "distill", {"student": {}, "data": {"root": n}}, scored_on="held-out images") for n in ("d", "e")]
    assert len(score_tables(held)) == 2


def test_classes_side_by_side_and_runs_without_labels_left_out() -> None:
    runs = [
        scored("a", 0.5, per_class={"cat": 0.5, "<script>": None}, scored_sha256="1"),
        scored("b", 0.4, per_class={"dog": 0.1, "cat": 0.2}, scored_sha256="1"),
        scored("no labels", None),
        Run("unfinished", Path("/runs/u"), "evaluate", {}, None),
    ]
    scores, classes = score_tables(runs)
    assert len(scores.rows) == 2
    assert classes.header == ("class", "a", "b")
    assert classes.rows == (("cat", 0.5, 0.2), ("<script>", None, None), ("dog", None, 0.1))
    assert score_tables(runs[2:]) == []


def test_sets_and_other_kinds() -> None:
    made = Run("set", Path("/s"), "invert", {}, {"teacher_ap50": 0.5, "images": 8}, {"recipe": {}}, "0" * 64)
    assert set_table([made])[0].rows == (("set", "invert", 8, 0.5),)
    assert set_table([scored("a", 0.1)]) == []
    future = Run("f", Path("/f"), "export", {}, {"parity": 0.5, "file": "x"})
    (table,) = other_table([made, scored("a", 0.1), future])
    assert (table.title, table.header, table.rows) == ("Runs of export", ("run", "parity"), (("f", 0.5),))


def test_losses_in_one_chart_where_two_runs_have_them() -> None:
    chart = Curves("train/loss", "step", {"train/loss": [(1.0, 2.0)]})
    a, b = scored("a", 0.1), scored("b", 0.1)
    assert list(loss_comparison([(a, [chart]), (b, [chart])])[0].lines) == ["a", "b"]
    assert loss_comparison([(a, [chart]), (b, [])]) == []
    (many,) = loss_comparison([(scored(f"r{i}", 0.1), [chart]) for i in range(105)])
    assert list(many.lines) == [f"r{i}" for i in range(8)]
    assert "the first 8 of 105 runs" in many.note
    assert "the first 8 of 105 runs" in curves_chart(many)
