"""Pictures of how detectors compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from detkd.evaluation.errors import CURVES
from detkd.evaluation.precision import RECALLS
from detkd.runtime.compare import AT, Compared
from detkd.runtime.error_figures import NOTES
from detkd.runtime.plotting import colour, save, shown

BARS = CURVES[:-1]  # FN is 1 for all


def sizes_figure(baseline: Compared, other: Compared, path: Path) -> None:
    """Draw AP by size under ever more permissive settings, what the other gains on the baseline hatched, as PNG.

    A loss is hatched in red, from the other's value up to the baseline's. Source: figure 2 in the appendix of de Rijk et al., Structural
    Knowledge Distillation for Object Detection, NeurIPS 2022.
    """
    figure = Figure(figsize=(13, 4.8), dpi=100, layout="constrained")
    figure.suptitle(f"{shown(other.name)} against {shown(baseline.name)}", fontsize=14)
    sizes = baseline.curves.sizes
    order = [k for k in range(len(sizes)) if sizes[k] != "all"] + [k for k in range(len(sizes)) if sizes[k] == "all"]
    panels = figure.subplots(1, len(sizes), sharey=True)
    mine, theirs = (100 * of.curves.average_precision() for of in (baseline, other))  # (7, A)
    for axes, a in zip(panels, order):
        axes.set_title("boxes of all sizes" if sizes[a] == "all" else f"{sizes[a]} boxes", fontsize=13)
        axes.set_xticks(range(len(BARS)), BARS, fontsize=11)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        if np.isnan(mine[:, a]).any():
            axes.text(0.5, 0.5, "no box of this size", ha="center", va="center", transform=axes.transAxes, fontsize=12)
            continue
        for k in range(len(BARS)):
            low, high = sorted((mine[k, a], theirs[k, a]))
            gain = theirs[k, a] >= mine[k, a]
            axes.bar(k, low, color="#4a6fa5", width=0.75)
            axes.bar(
                k,
                high - low,
                bottom=low,
                width=0.75,
                color="#dbe7f3" if gain else "#f6d5d0",
                hatch="///" if gain else "xxx",
                edgecolor="#4a6fa5" if gain else "#b3392b",
                linewidth=0.8,
            )
            axes.text(k, high + 1, f"{theirs[k, a] - mine[k, a]:+.1f}", ha="center", fontsize=10)
    panels[0].set_ylabel("AP, in points", fontsize=13)
    panels[0].set_ylim(0, 108)
    handles = [
        Patch(facecolor="#4a6fa5", label="both"),
        Patch(facecolor="#dbe7f3", edgecolor="#4a6fa5", hatch="///", label=shown(f"gain of {other.name}")),
        Patch(facecolor="#f6d5d0", edgecolor="#b3392b", hatch="xxx", label=shown(f"loss of {other.name}")),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=11)
    save(figure, path)


def classes_figure(other: Compared, path: Path) -> None:
    """Draw the difference of AP to the baseline by class, sorted, with 95 % intervals, as PNG; in brackets how many images have the class."""
    rows = sorted(
        ((c, of.difference) for c, of in other.per_class.items() if of.difference is not None),
        key=lambda row: row[1].value or 0.0,
    )
    figure = Figure(figsize=(9, 1.8 + 0.22 * len(rows)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for place, (_, d) in enumerate(rows):
        value = 100 * (d.value or 0.0)
        axes.barh(place, value, color="#4a6fa5" if value >= 0 else "#c8553d", height=0.75)
        if d.low is not None and d.high is not None:
            axes.plot([100 * d.low, 100 * d.high], [place, place], color="0.2", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{shown(c)} ({other.per_class[c].images})" for c, _ in rows], fontsize=10)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.set_xlabel(
        "difference of AP to the baseline, in points, with 95 % intervals; images with the class in brackets", fontsize=11
    )
    axes.set_title(shown(other.name), fontsize=13)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    save(figure, path)


def curves_figure(compared: Sequence[Compared], path: Path) -> None:
    """Draw precision over recall at IoU .5 and .75, mean over classes, as PNG of 1200 x 520 pixels."""
    figure = Figure(figsize=(12, 5.2), dpi=100, layout="constrained")
    for axes, row in zip(figure.subplots(1, 2), AT):
        for number, of in enumerate(compared):
            curve = of.curves.curve()[row, 0]
            axes.plot(RECALLS, curve, color=colour(number), linewidth=2, label=shown(f"[{curve.mean():.3f}] {of.name}", 60))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
        axes.set_title(f"precision over recall at {NOTES[CURVES[row]]}, mean over classes", fontsize=13)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=11)
    save(figure, path)


def confidence_figure(compared: Sequence[Compared], path: Path) -> None:
    """Draw how many detections have which score, right and wrong at IoU .5, a panel a run, as PNG."""
    figure = Figure(figsize=(5 * len(compared), 4.5), dpi=100, layout="constrained")
    edges = np.linspace(0, 1, 41)
    for axes, of in zip(figure.subplots(1, len(compared), sharey=True, squeeze=False)[0], compared):
        scores, hit = of.confidences
        wrong, right = (np.histogram(scores[flags], edges)[0] for flags in (~hit, hit))
        axes.stairs(wrong, edges, fill=True, color="#e3a49a", label=f"wrong: {int(wrong.sum())}")
        axes.stairs(right, edges, color="#1f3552", linewidth=2, label=f"right: {int(right.sum())}")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set(xlim=(0, 1), xlabel="score", ylabel="detections")
        axes.set_title(shown(of.name), fontsize=13)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=11)
    save(figure, path)


def calibration_figure(compared: Sequence[Compared], threshold: float, path: Path) -> None:
    """Draw reliability diagrams: precision of detections by their score, a panel a run, as PNG."""
    figure = Figure(figsize=(5 * len(compared), 5), dpi=100, layout="constrained")
    figure.suptitle(f"detections that score {threshold:g} or more, right at IoU .5", fontsize=13)
    for axes, of in zip(figure.subplots(1, len(compared), sharey=True, squeeze=False)[0], compared):
        r = of.calibration
        axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="calibrated")
        there = r.counts > 0
        width = r.edges[1] - r.edges[0]
        axes.bar(r.edges[:-1][there], r.precision[there], width, align="edge", color="#8fb3d9", edgecolor="#4a6fa5")
        axes.plot(r.confidence[there], r.precision[there], "o", color="#1f3552", markersize=4, label="mean score of a bin")
        text = "no detections" if r.ece is None else f"D-ECE {100 * r.ece:.1f} points of {int(r.counts.sum())} detections"
        axes.set_title(f"{shown(of.name)}\n{text}", fontsize=12)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="precision")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize=10)
    save(figure, path)
