"""The learning rate over a run, as a fraction of its peak."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, final_fraction: float) -> float:
    """Rise linearly over the warm-up, then fall along half a cosine.

    Args:
        step: optimiser step, from 0. total_steps: of the run. warmup_steps: 0 <= warmup_steps < total_steps.
        final_fraction: at ``total_steps`` and after, in [0, 1].

    Returns:
        in (0, 1]: ``(step + 1) / (warmup_steps + 1)`` in the warm-up, so that the first step counts too; 1 at its end.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
