"""Curves of average precision over the severity of corruptions."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from detkd.evaluation.corruptions import GROUPS
from detkd.evaluation.robustness import Robustness
from detkd.runtime.plotting import colour, save

MARKERS = "osD^"


def robustness_figure(result: Robustness, path: Path) -> None:
    """Draw AP over severity, a panel for each group of corruptions (noise, blur, weather, digital) that has any, as PNG.

    Severity 0 is the clean score; a dotted line is mPC. path: written whole or not at all; 360 pixels a panel wide and 480 high.
    """
    members = {group: [f.__name__ for f in functions if f.__name__ in result.corrupted] for group, functions in GROUPS.items()}
    members = {group: names for group, names in members.items() if names}
    figure = Figure(figsize=(3.6 * len(members), 4.8), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(members), sharey=True, squeeze=False)[0]
    clean = result.clean.ap or 0.0
    for axes, (group, names) in zip(panels, members.items()):
        for number, name in enumerate(names):
            points = sorted((severity, scores.ap or 0.0) for severity, scores in result.corrupted[name].items())
            x, y = zip((0, clean), *points)
            axes.plot(
                x, y, color=colour(number), marker=MARKERS[number], markersize=5, linewidth=2, label=name.replace("_", " ")
            )
        axes.axhline(result.mpc(), color="0.35", linestyle=":", linewidth=1.5)
        axes.set_title(group, fontsize=13)
        axes.set_xlabel("severity", fontsize=12)
        axes.set_xticks(range(6))
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", fontsize=10)
    panels[0].set_ylabel("AP", fontsize=13)
    highest = max([clean, *(scores.ap or 0.0 for of in result.corrupted.values() for scores in of.values())])
    panels[0].set_ylim(0, 1.1 * highest or 1)
    rpc = result.rpc()
    relative = "" if rpc is None else f", rPC {100 * rpc:.1f} %"
    figure.suptitle(f"AP {clean:.3f} clean, mPC {result.mpc():.3f} (dotted){relative}", fontsize=14)
    save(figure, path)
