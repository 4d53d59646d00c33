"""Pictures of how students' feature maps compare: the figures of DeFeat's supplement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from detkd.evaluation.feature_comparison import Comparison
from detkd.runtime import plotting
from detkd.structures import Target

Shown = tuple[Tensor, Target]


def distance_figure(compared: Mapping[str, Comparison], images: int, path: Path) -> None:
    """Draw the mean |T - S| of each channel, sorted by student, object region beside background, as PNG of 1200 x 500 pixels.

    images: how many the means are over. path: written whole or not at all.
    """
    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    levels = ", ".join(dict.fromkeys(of.level for of in compared.values()))
    figure.suptitle(f"distance to the teacher at {levels}, mean of {images} image{'s' * (images != 1)}", fontsize=14)
    highest = 0.0
    for region, axes in enumerate(panels):
        for number, (name, of) in enumerate(compared.items()):
            values = of.distance.means()[region].sort().values.numpy()
            if not len(values) or np.isnan(values).any():
                continue
            highest = max(highest, float(values.max()))
            label = plotting.shown(f"{name}: mean {values.mean():.3g}", 60)
            axes.plot(np.arange(len(values)), values, color=plotting.colour(number), linewidth=2, label=label)
        axes.set_title(("object region", "background region")[region], fontsize=13)
        axes.set_xlabel("channels, sorted for each student", fontsize=13)
        axes.tick_params(labelsize=12)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc="upper left", fontsize=12)
        else:
            axes.text(0.5, 0.5, "no cell in this region", ha="center", va="center", transform=axes.transAxes, fontsize=13)
    panels[0].set_ylabel("mean |T - S| over the region's cells", fontsize=13)
    panels[0].set_ylim(0, 1.1 * highest or 1)
    plotting.save(figure, path)


def gradient_figure(compared: Mapping[str, Comparison], shown: Sequence[Shown], path: Path) -> None:
    """Draw heat maps of the gradient's norm, a row an image and a column a student, as PNG.

    Args:
        shown: images (3, H, W) in [0, 1] and their boxes xyxy in pixels, as many as there are heat maps.
        path: written whole or not at all.

    The colours of a row share one scale, from 0 to the row's highest value.
    """
    rows, columns = len(shown), 1 + len(compared)
    figure = Figure(figsize=(2.8 * columns + 1.0, 2.7 * rows + 0.9), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    levels = ", ".join(dict.fromkeys(of.level for of in compared.values()))
    figure.suptitle(f"norm of the loss's gradient at {levels}", fontsize=14)
    for row, (image, target) in enumerate(shown):
        height, width = image.shape[-2:]
        maps = [of.heat[row] for of in compared.values()]
        highest = max(float(m.max()) for m in maps) or 1.0
        grid[row, 0].imshow(image.permute(1, 2, 0).cpu().numpy(), extent=(0, width, height, 0))  # (H, W, 3)
        grid[row, 0].set_ylabel(f"image {row + 1}", fontsize=12)
        drawn: Any = None
        for axes, heat in zip(grid[row, 1:], maps):
            drawn = axes.imshow(heat.numpy(), extent=(0, width, height, 0), cmap="inferno", vmin=0, vmax=highest)
        for axes in grid[row]:
            axes.set_xticks([])
            axes.set_yticks([])
            for x1, y1, x2, y2 in target["boxes"].tolist():
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="black", linewidth=2.5))
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="cyan", linewidth=1.2))
        scale = ScalarFormatter()
        scale.set_powerlimits((-2, 3))
        figure.colorbar(drawn, ax=grid[row, -1], shrink=0.9, label="L2 norm over channels", format=scale)
    for axes, title in zip(grid[0], ["image and objects", *compared]):
        axes.set_title(plotting.shown(title), fontsize=13)
    plotting.save(figure, path)
