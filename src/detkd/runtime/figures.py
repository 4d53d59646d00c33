"""Figures of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detkd.errors import InputError
from detkd.runtime.plotting import save

Trace = Mapping[str, Sequence[float]]


def objects_figure(traces: Sequence[Trace], path: Path) -> None:
    """Draw the mean number of objects an image over the iterations, as PNG of 800 x 500 pixels (DIODE's Figure 3).

    Args:
        traces: of each batch {"iterations": [int], "objects": [float]}, as long as each other; other keys are passed over. Batches
            may have been looked at in different iterations.
        path: of the picture, written whole or not at all.

    A thin line is a batch, the thick one their mean, each batch counting the same; it covers the iterations that all batches have.

    Raises InputError without traces and on lists that differ in length or are empty.
    """
    lines = [_line(trace, number) for number, trace in enumerate(traces)]
    if not lines:
        raise InputError("the figure of objects over iterations needs the trace of at least one batch, got none")

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for x, y in lines:
        axes.step(x, y, where="post", color="0.45", linewidth=1, alpha=max(0.3, 0.9 / len(lines) ** 0.5))
    x, y = _mean(lines)
    batches = f"mean of {len(lines)} batches" if len(lines) > 1 else "one batch"
    axes.step(
        x, y, where="post", color="tab:blue", linewidth=3, label=f"{batches}: {y[0]:.2f} \N{RIGHTWARDS ARROW} {y[-1]:.2f}"
    )
    axes.set_xlabel("iterations (optimiser steps)", fontsize=13)
    axes.set_ylabel("objects an image (mean of a batch)", fontsize=13)
    axes.tick_params(labelsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.15 * max(float(y.max()) for _, y in lines) or 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=12)
    save(figure, path)


def _line(trace: Trace, number: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(trace.get(key, ()), dtype=float) for key in ("iterations", "objects"))
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise InputError(
            f"trace of batch {number}: expected as many iterations as objects, at least one, got {x.size} and {y.size}"
        )
    order = x.argsort(kind="stable")
    return x[order], y[order]


def _mean(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over lines, interpolated, where all are defined; over all iterations where they have none in common."""
    x = np.unique(np.concatenate([x for x, _ in lines]))
    common = x[(x >= max(x[0] for x, _ in lines)) & (x <= min(x[-1] for x, _ in lines))]
    x = common if len(common) else x
    return x, np.mean([np.interp(x, *line) for line in lines], axis=0)
