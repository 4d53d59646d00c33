"""Images with what detectors found in them, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL.Image import Image

from detkd.evaluation.changes import Judged
from detkd.evaluation.matching import Boxes
from detkd.runtime.plotting import save, shown

RIGHT, WRONG, TRUTH = "#ffd500", "#ff3b30", "white"
_WIDTH = 5.0  # inches of a column


def side_by_side(
    image: Image, true: Boxes, judged: Sequence[tuple[str, Judged]], classes: Sequence[str], title: str, path: Path
) -> None:
    """Draw an image once a detector, as PNG: correct boxes yellow, wrong ones red, ground truth white (crowds dotted).

    judged: by name, in order. classes: what labels mean. title: above all, like the image's file name.
    """
    height = min(max(_WIDTH * image.height / image.width, 1.5), 3 * _WIDTH)
    figure = Figure(figsize=(_WIDTH * len(judged), height + 1.3), dpi=100, layout="constrained")
    figure.suptitle(shown(title, 90), fontsize=12)
    pixels = np.asarray(image)
    for axes, (name, of) in zip(figure.subplots(1, len(judged), squeeze=False)[0], judged):
        axes.imshow(pixels, extent=(0, image.width, image.height, 0))
        axes.set(xlim=(0, image.width), ylim=(image.height, 0))
        axes.set_axis_off()
        hits, alarms, missed = of.counts
        axes.set_title(f"{shown(name)}\n{hits} right, {alarms} wrong, {missed} missed", fontsize=12)
        for box, void in zip(true.xywh, true.void):
            _rectangle(axes, box, TRUTH, 2.4, ":" if void else "-")
        for k in range(len(of.found)):
            if not of.left_out[k]:
                paint = RIGHT if of.right[k] else WRONG
                _rectangle(axes, of.found.xywh[k], paint, 1.6, "-")
                text = shown(f"{classes[of.found.labels[k]]} {of.found.scores[k]:.2f}", 24)
                x, y = of.found.xywh[k, :2]
                axes.text(
                    min(max(x, 0), image.width),
                    min(max(y, 0), image.height),
                    text,
                    fontsize=8,
                    color="black",
                    va="bottom" if y > 0.04 * image.height else "top",
                    bbox={"facecolor": paint, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
                    clip_on=True,
                )
    lines = [
        Line2D([], [], color=c, linewidth=3, label=n) for c, n in ((RIGHT, "right"), (WRONG, "wrong"), (TRUTH, "ground truth"))
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=11, facecolor="0.6")
    save(figure, path)


def _rectangle(axes: Any, xywh: Any, paint: str, width: float, style: str) -> None:
    x, y, w, h = xywh
    for colour, line in (("black", width + 1.2), (paint, width)):
        axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=line, linestyle=style))
