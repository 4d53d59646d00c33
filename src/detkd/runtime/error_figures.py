"""Pictures of errors: COCO's seven curves, and TIDE's bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from detkd.evaluation.errors import CURVES
from detkd.evaluation.matching import Floats
from detkd.evaluation.precision import RECALLS
from detkd.evaluation.tide import SPECIAL, Tide
from detkd.runtime.plotting import save, shown

# what each curve adds to the one before
COLOURS = ("#4a6fa5", "#8fb3d9", "#7fb77e", "#e8c547", "#e59b5a", "#b39ddb", "#dedede")
NOTES = dict(zip(CURVES, ("IoU .75", "IoU .5", "IoU .1", "similar classes", "other classes", "background", "missed")))


def curves_figure(title: str, sizes: tuple[str, ...], curve: Floats, similar: bool, path: Path) -> None:
    """Draw precision over recall, a panel a size, as PNG; the legend has the area below each curve.

    curve: (7, A, 101), NaN where no class has a box of the size. similar: whether there are supercategories; without them the legend says
    that Sim is Loc.
    """
    figure = Figure(figsize=(12, 10), dpi=80)  # there may be hundreds: a constrained layout would take most of the time
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.06, top=0.92, hspace=0.2, wspace=0.14)
    figure.suptitle(shown(title), fontsize=15)
    panels = figure.subplots(2, (len(sizes) + 1) // 2, squeeze=False).ravel()
    for axes in panels[len(sizes) :]:
        axes.set_axis_off()
    for a, (axes, size) in enumerate(zip(panels, sizes)):
        axes.set_title(f"{size} boxes" if size != "all" else "boxes of all sizes", fontsize=13)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
        if np.isnan(curve[:, a]).any():
            axes.text(0.5, 0.5, "no box of this size", ha="center", va="center", fontsize=13)
            continue
        below = np.zeros(len(RECALLS))
        for number, name in enumerate(CURVES):
            above = curve[number, a]
            note = NOTES[name] if name != "Sim" or similar else "no supercategories: as Loc"
            label = f"[{above.mean():.3f}] {name} ({note})"
            axes.fill_between(RECALLS, below, above, color=COLOURS[number], label=label, linewidth=0)
            axes.plot(RECALLS, above, color="0.25", linewidth=0.8)
            below = above
        axes.legend(loc="upper right", fontsize=11, framealpha=0.9)
    save(figure, path)


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
