"""A table as lines over columns that are numbers: a line a row, with intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from detkd.runtime.plotting import distinct, marker, save, shown
from detkd.runtime.table import Table, number
from detkd.runtime.table_axis import explanation, value_limits
from detkd.runtime.table_words import broken, in_words, is_score

_LOG_FROM = 8.0  # columns that span more than this are shown on a logarithmic axis
_STYLES = ("-", "-.", ":")


def lines_figure(table: Table, path: Path) -> None:
    """Draw the means of each row over the columns' numbers with 95 % intervals and single runs, as PNG of 1000 pixels' width.

    Holes break no line: it goes from one value to the next. Rows that were given are dashed and hollow; one value for all columns is a
    line across. table: its columns must be numbers.
    """
    numbers = sorted((float(number(c) or 0.0), c) for c in table.columns)
    xs = [x for x, _ in numbers]
    cells = [table.cell(row, column) for row in table.rows for column in table.columns]
    limits = value_limits(cells, is_score(table.value_key))
    legend = sum(0.2 * len(_label(table, row)) + 0.13 for row in table.rows)  # inches
    figure = Figure(figsize=(10, max(5.6, 0.3 + legend)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    logarithmic = xs[0] > 0 and xs[-1] / xs[0] >= _LOG_FROM
    if logarithmic:
        axes.set_xscale("log")
    measured = [row for row in table.rows if not any(table.cell(row, c).given for c in table.columns)]
    reach = min(0.15, 0.03 * (len(measured) - 1))
    shifts = dict(zip(measured, np.linspace(-reach, reach, len(measured)) if reach else [0.0]))
    for place, row in enumerate(table.rows):
        _line(axes, table, row, place, numbers, limits, _shift(xs, logarithmic, float(shifts.get(row, 0.0))))
    _x_axis(axes, table, xs, [name for _, name in numbers], logarithmic)
    if limits is None:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no run has a value yet", ha="center", va="center", fontsize=13, transform=axes.transAxes)
    else:
        axes.set_ylim(*limits)
        figure.legend(loc="outside right upper", fontsize=11, frameon=False, labelspacing=0.7, handlelength=3)
    axes.set_ylabel(shown(in_words(table.value_key), 60), fontsize=11.5)
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(explanation(cells, limits), loc="left", fontsize=10, color="0.35")
    save(figure, path)


def _line(
    axes: Axes,
    table: Table,
    row: str,
    place: int,
    numbers: list[tuple[float, str]],
    limits: tuple[float, float] | None,
    shift: np.ndarray,
) -> None:
    colour = distinct(place)
    there = [(x, cell) for x, (_, c) in zip(shift, numbers) if (cell := table.cell(row, c)).mean is not None]
    if not there or limits is None:
        return
    given = there[0][1].given
    label = "\n".join(_label(table, row))
    means = [cell.mean or 0.0 for _, cell in there]
    if given and len(set(means)) == 1:
        axes.axhline(means[0], color=colour, linestyle="--", linewidth=1.8, label=label, zorder=2)
        return
    style = "--" if given else _STYLES[place // 7 % len(_STYLES)]
    face = "white" if given else colour
    axes.plot(
        [x for x, _ in there],
        means,
        linestyle=style,
        color=colour,
        linewidth=2,
        marker=marker(place),
        markersize=7,
        markerfacecolor=face,
        markeredgecolor=colour if given else "white",
        markeredgewidth=1.6 if given else 0.8,
        label=label,
        zorder=4,
    )
    beside = axes.transData + ScaledTranslation(0.055, 0, axes.figure.dpi_scale_trans)  # inches, right of the interval
    for x, cell in there:
        if cell.half_interval is None or cell.mean is None:
            continue
        low, high = cell.mean - cell.half_interval, cell.mean + cell.half_interval
        axes.plot([x, x], [max(low, limits[0]), min(high, limits[1])], color=colour, linewidth=1.5, alpha=0.8, zorder=2)
        for end, cut, arrow in ((limits[0], low < limits[0], "v"), (limits[1], high > limits[1], "^")):
            if cut:
                axes.plot(x, end, arrow, color=colour, markersize=6, clip_on=False, zorder=2)
        axes.plot(
            *([x] * len(cell.values), cell.values, "o"),
            color=colour,
            markersize=3.2,
            alpha=0.75,
            markeredgewidth=0,
            transform=beside,
            zorder=3,
        )


def _label(table: Table, row: str) -> list[str]:
    given = any(table.cell(row, column).given for column in table.columns)
    return [shown(line) for line in broken(row + " (given)" * given, 24)]


def _shift(xs: list[float], logarithmic: bool, by: float) -> np.ndarray:
    """The numbers moved aside, so that intervals of several rows stand apart; by: in ways to the next."""
    places = np.log(xs) if logarithmic else np.asarray(xs)
    gap = (
        min(float(np.diff(places).min()), 0.12 * float(places[-1] - places[0]))
        if len(xs) > 1
        else 0.1 * max(abs(places[0]), 1.0)
    )
    moved = places + gap * by
    return np.exp(moved) if logarithmic else moved


def _x_axis(axes: Axes, table: Table, xs: list[float], names: list[str], logarithmic: bool) -> None:
    places = np.log(xs) if logarithmic else np.asarray(xs)
    span = float(places[-1] - places[0])
    kept: list[int] = []
    for k in range(len(xs)):  # a tick at each number, but where names would run into each other
        if not kept or places[k] - places[kept[-1]] >= 0.014 * span * (len(names[k]) + len(names[kept[-1]])) / 2:
            kept.append(k)
    axes.set_xticks([xs[k] for k in kept], [shown(names[k], 12) for k in kept], fontsize=11)
    axes.xaxis.set_minor_locator(NullLocator())
    if span:
        ends = places[0] - 0.04 * span, places[-1] + 0.04 * span
        axes.set_xlim(*(np.exp(ends) if logarithmic else ends))
    words = shown(in_words(table.column_key or ""), 60)
    axes.set_xlabel(words + (" (logarithmic)" if logarithmic else ""), fontsize=11.5)
