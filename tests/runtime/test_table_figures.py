from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from detkd.runtime import table_dots, table_lines
from detkd.runtime.table import Cell, Table
from detkd.runtime.table_axis import explanation, value_limits
from detkd.runtime.table_words import broken, in_words

LONG = "detection,defeat_neck,defeat_backbone,defeat_proposals"


def table(rows: int, columns: list[str], *, seeds: int = 3, key: str = "steps") -> Table:
    names = tuple(f"{LONG}_{k}" if k % 3 == 2 else f"row {k}" for k in range(rows))
    cells = {
        (row, column): Cell(tuple(0.1 + 0.05 * i + 0.03 * j + 0.01 * s for s in range(seeds)))
        for i, row in enumerate(names)
        for j, column in enumerate(columns)
        if (i + j) % 4 != 3
    }
    return Table("row", key, "ap50", names, tuple(columns), cells)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are saved."""
    figures: list[Figure] = []
    for module in (table_dots, table_lines):
        save = module.save
        monkeypatch.setattr(module, "save", lambda figure, path, save=save: (figures.append(figure), save(figure, path)))
    return figures


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Texts that lie on each other; fails where one is cut off."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    ticks = [
        tick.label1
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in axis.get_major_ticks()
        if min(limits) <= tick.get_loc() <= max(limits)
    ]
    labels = {id(label) for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    texts = [*ticks, *(text for text in figure.findobj(Text) if id(text) not in labels)]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip() and text.get_visible()]
    for text, box in boxes:
        assert -1 <= box.x0 <= box.x1 <= figure.bbox.width + 1, text
        assert -1 <= box.y0 <= box.y1 <= figure.bbox.height + 1, text
    return [(a, b) for k, (a, first) in enumerate(boxes) for b, second in boxes[k + 1 :] if first.overlaps(second)]


@pytest.mark.parametrize(("rows", "columns"), [(2, ["x"]), (12, ["real", "teacher", "synthetic", LONG]), (5, ["x", "y"])])
def test_dots_overlap_no_text_and_are_the_same_each_time(
    tmp_path: Path, drawn: list[Figure], rows: int, columns: list[str]
) -> None:
    for name in ("a.png", "b.png"):
        table_dots.dots_figure(table(rows, columns), tmp_path / name)
    assert overlapping(drawn[0]) == []
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1000


def test_a_hole_leaves_a_gap_and_a_constant_is_hollow(tmp_path: Path, drawn: list[Figure]) -> None:
    cells = {("t", "x"): Cell((0.9,), given=True), ("a", "x"): Cell((0.2, 0.3)), ("b", "y"): Cell((), ("run",))}
    table_dots.dots_figure(Table("row", "column", "ap50", ("t", "a", "b"), ("x", "y"), cells), tmp_path / "a.png")
    means = [line for line in drawn[0].axes[0].lines if line.get_markersize() == 7.5]
    assert [(line.get_xdata()[0], line.get_markerfacecolor()) for line in means] == [(0.9, "white"), (0.25, "#0072b2")]
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["x", "y", "hollow: given, not of runs"]


@pytest.mark.parametrize("figure", [table_dots.dots_figure, table_lines.lines_figure])
def test_a_table_of_holes_says_so(tmp_path: Path, drawn: list[Figure], figure: object) -> None:
    assert callable(figure)
    figure(Table("row", "steps", "ap50", ("a", "b"), ("1", "2"), {}), tmp_path / "a.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["no run has a value yet"]


@pytest.mark.parametrize("columns", [["64", "128", "1024"], ["5"], ["1000", "1010", "1020", "9000"], ["-1", "0", "0.5"], ["0"]])
@pytest.mark.parametrize("rows", [2, 12])
def test_lines_overlap_no_text(tmp_path: Path, drawn: list[Figure], rows: int, columns: list[str]) -> None:
    table_lines.lines_figure(table(rows, columns), tmp_path / "a.png")
    assert overlapping(drawn[0]) == []
    assert len(drawn[0].legends[0].get_texts()) == sum(
        any(table(rows, columns).cell(row, c).values for c in columns) for row in table(rows, columns).rows
    )


def test_lines_go_by_size_over_holes_and_constants_are_dashed(tmp_path: Path, drawn: list[Figure]) -> None:
    cells = {("a", x): Cell((float(x) / 100, float(x) / 50)) for x in ("40", "10")}
    cells |= {("t", x): Cell((0.5,), given=True) for x in ("40", "20", "10")}
    table_lines.lines_figure(Table("row", "steps", "ap", ("t", "a"), ("40", "20", "10"), cells), tmp_path / "a.png")
    across, line = (of for of in drawn[0].axes[0].lines if not of.get_label().startswith("_"))
    assert (across.get_linestyle(), across.get_label()) == ("--", "t (given)")
    assert list(line.get_xdata()) == [10, 40]
    assert list(line.get_ydata()) == pytest.approx([0.15, 0.6])
    assert drawn[0].axes[0].get_xlabel() == "training steps"


def test_the_axis_shows_values_and_of_intervals_what_leaves_them_readable() -> None:
    near = [Cell((0.4, 0.5, 0.6)), Cell((0.45,))]
    low, high = value_limits(near, True) or (0, 0)
    assert low < 0.5 - (near[0].half_interval or 0) < 0.5 + (near[0].half_interval or 0) < high
    assert "arrows" not in explanation(near, (low, high))
    wide = [Cell((0.1, 0.9))]
    low, high = value_limits(wide, True) or (0, 0)
    assert -0.05 < low < 0
    assert 1 < high < 1.05
    assert "arrows" in explanation(wide, (low, high))
    assert value_limits([Cell(()), Cell((), ("run",))], True) is None
    assert explanation([Cell((0.5,))], (0, 1)) == ""
    below, above = value_limits([Cell((0.0,))], False) or (0, 0)
    assert below <= 0 < above


def test_keys_in_words() -> None:
    words = ("AP50 (0 to 1)", "AP of RBC (0 to 1)", "number of training images", "anchor size of student.detector", "labels")
    keys = ("ap50", "per_class.RBC", "data.length", "student.detector.anchor_size", "labels")
    assert tuple(map(in_words, keys)) == words


def test_long_names_are_broken() -> None:
    assert broken("short") == ["short"]
    assert broken(LONG, 26) == ["detection,defeat_neck,", "defeat_backbone,defeat_" + "\N{HORIZONTAL ELLIPSIS}"]
    assert broken("x" * 30, 10, 3) == ["x" * 10] * 3
    assert broken("") == [""]
