"""A table as dots with intervals: a group a row, a colour a column."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from detkd.runtime.plotting import distinct, marker, save, shown
from detkd.runtime.table import Cell, Table
from detkd.runtime.table_axis import explanation, value_limits
from detkd.runtime.table_words import broken, in_words, is_score


def dots_figure(table: Table, path: Path) -> None:
    """Draw each cell's mean, its 95 % interval and its single runs, as PNG of 1000 pixels' width; holes leave a gap.

    Values that were given are hollow. Intervals that are wider than the picture end in an arrow at its edge.
    """
    n = len(table.columns)
    slot = min(0.22, 0.3 / n**0.4)  # inches
    group = max(0.46, slot * n + 0.14)
    cells = [table.cell(row, column) for row in table.rows for column in table.columns]
    legend = _legend(table, cells)
    height = 1.25 + group * len(table.rows) + 0.3 * (legend is not None)
    figure = Figure(figsize=(10, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    limits = value_limits(cells, is_score(table.value_key))
    for place, row in enumerate(table.rows):
        if place % 2 == 0 and limits is not None:
            axes.axhspan(place - 0.5, place + 0.5, color="0.955", zorder=0)
        for k, column in enumerate(table.columns):
            y = place + (k - (n - 1) / 2) * slot / group
            _dot(axes, table.cell(row, column), y, slot / group, k, limits)
    axes.set_yticks(range(len(table.rows)), ["\n".join(shown(line) for line in broken(row)) for row in table.rows], fontsize=11)
    axes.tick_params(axis="y", length=0, pad=12)
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.grid(axis="x", color="0.85", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if limits is None:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no run has a value yet", ha="center", va="center", fontsize=13, transform=axes.transAxes)
    else:
        axes.set_xlim(*limits)
    explained = explanation(cells, limits)
    axes.set_xlabel("\n".join(filter(None, [shown(in_words(table.value_key), 60), explained])), fontsize=11.5)
    if legend is not None:
        title = None if table.column_key in (None, "column") else shown(in_words(table.column_key))
        letters = sum(len(str(handle.get_label())) + 5 for handle in legend)
        figure.legend(
            handles=legend,
            loc="outside upper center",
            ncols=max(1, min(len(legend), len(legend) * 110 // letters)),
            title=title if len(table.columns) > 1 else None,
            fontsize=11,
            title_fontsize=11,
            frameon=False,
        )
    save(figure, path)


def _dot(axes: Axes, cell: Cell, y: float, slot: float, number: int, limits: tuple[float, float] | None) -> None:
    if cell.mean is None or limits is None:
        return
    colour = distinct(number)
    if cell.half_interval is not None:
        low, high = cell.mean - cell.half_interval, cell.mean + cell.half_interval
        axes.plot([max(low, limits[0]), min(high, limits[1])], [y, y], color=colour, linewidth=2, zorder=2)
        for end, cut, arrow in ((limits[0], low < limits[0], "<"), (limits[1], high > limits[1], ">")):
            if cut:
                axes.plot(end, y, arrow, color=colour, markersize=7, clip_on=False, zorder=2)
        below = [y + 0.36 * slot] * len(cell.values)
        axes.plot(cell.values, below, "o", color=colour, markersize=3.2, alpha=0.75, markeredgewidth=0, zorder=3)
    axes.plot(
        *(cell.mean, y, marker(number)),
        markersize=7.5,
        markerfacecolor="white" if cell.given else colour,
        markeredgecolor=colour if cell.given else "white",
        markeredgewidth=2 if cell.given else 0.8,
        clip_on=False,
        zorder=4,
    )


def _legend(table: Table, cells: Iterable[Cell]) -> list[Line2D] | None:
    handles = []
    if len(table.columns) > 1:
        for k, column in enumerate(table.columns):
            label = shown(column, 36)
            handles.append(Line2D([], [], color=distinct(k), marker=marker(k), linewidth=2, markersize=7.5, label=label))
    if any(cell.given for cell in cells):
        hollow = Line2D([], [], marker="o", markersize=7.5, linestyle="none", label="hollow: given, not of runs")
        hollow.set(markerfacecolor="white", markeredgecolor="0.3", markeredgewidth=2)
        handles.append(hollow)
    return handles or None
