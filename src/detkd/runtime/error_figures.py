"""Pictures of errors: COCO's seven curves, and TIDE's bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text

from detkd.evaluation.errors import CURVES
from detkd.evaluation.matching import Floats
from detkd.evaluation.precision import RECALLS
from detkd.evaluation.tide import SPECIAL, Tide
from detkd.runtime.plotting import save, shown

# what each curve adds to the one before
COLOURS = ("#4a6fa5", "#8fb3d9", "#7fb77e", "#e8c547", "#e59b5a", "#b39ddb", "#dedede")
NOTES = dict(zip(CURVES, ("IoU .75", "IoU .5", "IoU .1", "similar classes", "other classes", "background", "missed")))


_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def curves_figure(title: str, sizes: tuple[str, ...], curve: Floats, similar: bool, path: Path) -> None:
    """Draw one picture as :class:`CurvesSheet` does."""
    CurvesSheet(sizes, similar).draw(title, curve, path)


class CurvesSheet:
    """Precision over recall, a panel a size; the legend has the area below each curve.

    A sheet draws any number of pictures, each in half the time of a new one: there is one a class, and there may be hundreds.

    Args:
        sizes: names of the A ranges of area. similar: whether there are supercategories; without them the legend says that Sim is Loc.
    """

    def __init__(self, sizes: tuple[str, ...], similar: bool) -> None:
        self._figure = Figure(
            figsize=(12, 10), dpi=80
        )  # a constrained layout would take most of the time, and so do texts and ticks
        self._figure.subplots_adjust(left=0.06, right=0.98, bottom=0.06, top=0.92, hspace=0.2, wspace=0.14)
        self._title = self._figure.suptitle(" ", fontsize=15)
        self._notes = [NOTES[name] if name != "Sim" or similar else "no supercategories: as Loc" for name in CURVES]
        panels = self._figure.subplots(2, (len(sizes) + 1) // 2, squeeze=False).ravel()
        for axes in panels[len(sizes) :]:
            axes.set_axis_off()
        self._panels = [self._panel(axes, size) for axes, size in zip(panels, sizes)]

    def _panel(self, axes: Axes, size: str) -> _Panel:
        axes.set_title(f"{size} boxes" if size != "all" else "boxes of all sizes", fontsize=13, y=1.0)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", xticks=_TICKS, yticks=_TICKS)
        flat = np.zeros(len(RECALLS))
        areas = [axes.fill_between(RECALLS, flat, flat, color=c, label=" ", linewidth=0) for c in COLOURS]
        lines = [axes.plot(RECALLS, flat, color="0.25", linewidth=0.8)[0] for _ in COLOURS]
        legend = axes.legend(loc="upper right", fontsize=11, framealpha=0.9)
        empty = axes.text(0.5, 0.5, "no box of this size", ha="center", va="center", fontsize=13)
        return _Panel(areas, lines, legend, empty)

    def draw(self, title: str, curve: Floats, path: Path) -> None:
        """Draw a picture as PNG. curve: (7, A, 101), NaN where no class has a box of the size."""
        self._title.set_text(shown(title))
        for a, panel in enumerate(self._panels):
            there = not np.isnan(curve[:, a]).any()
            panel.empty.set_visible(not there)
            for artist in (*panel.areas, *panel.lines, panel.legend):
                artist.set_visible(there)
            below = np.zeros(len(RECALLS))
            for above, area, line, text, name, note in zip(
                curve[:, a], panel.areas, panel.lines, panel.legend.get_texts(), CURVES, self._notes
            ):
                area.set_verts([np.r_[np.c_[RECALLS, below], np.c_[RECALLS, above][::-1]]])
                line.set_ydata(above)
                text.set_text(f"[{above.mean():.3f}] {name} ({note})")
                below = above
        save(self._figure, path)


@dataclass(frozen=True)
class _Panel:
    areas: Sequence[PolyCollection]
    lines: Sequence[Line2D]
    legend: Legend
    empty: Text


def tide_figure(title: str, found: Tide, path: Path) -> None:
    """Draw what each kind of error costs, in points of AP50, as PNG of 1000 x 450 pixels."""
    figure = Figure(figsize=(10, 4.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    names = list(found.dap)
    values = [100 * found.dap[name] for name in names]
    places = [k + 0.6 * (name in SPECIAL) for k, name in enumerate(names)]
    bars = axes.bar(places, values, color=["#e59b5a" if name in SPECIAL else "#4a6fa5" for name in names], width=0.7)
    axes.bar_label(bars, [f"{v:.2f}" for v in values], fontsize=12, padding=2)
    axes.set_xticks(places, [f"{n}\n({found.counts[n]})" if n in found.counts else f"all {n}" for n in names], fontsize=12)
    axes.set_ylim(0, 1.15 * max([*values, 0.01]))
    axes.set_ylabel("AP50 lost, in points", fontsize=13)
    axes.set_title(f"{shown(title)}: AP50 {100 * found.ap50:.2f}; in brackets how many errors there are", fontsize=13)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    save(figure, path)
