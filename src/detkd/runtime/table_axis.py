"""The axis of values that the pictures of tables share."""

from __future__ import annotations

from collections.abc import Iterable

from detkd.runtime.table import Cell

# How far the axis may follow an interval beyond the values, in their span: three runs stay within it, two have intervals 13 times as
# wide as they lie apart.
_BEYOND = 1.0


def value_limits(cells: Iterable[Cell], score: bool) -> tuple[float, float] | None:
    """The ends of the axis of values: all values, and their intervals as far as they leave the values readable; None for no value.

    The axis does not go below 0 where no value does, nor, of a score, above 1.
    """
    cells = [cell for cell in cells if cell.values]
    values = [value for cell in cells for value in cell.values]
    if not values:
        return None
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    ends = [(cell.mean or 0.0, cell.half_interval or 0.0) for cell in cells]
    bottom, top = min(low, *(mean - half for mean, half in ends)), max(high, *(mean + half for mean, half in ends))
    margin = 0.05 * (min(top, high + _BEYOND * span) - max(bottom, low - _BEYOND * span) or span)
    bottom = max(bottom - margin, low - _BEYOND * span)
    top = min(top + margin, high + _BEYOND * span)
    return max(bottom, -0.2 * margin) if low >= 0 else bottom, min(top, 1 + 0.2 * margin) if score and high <= 1 else top


def explanation(cells: Iterable[Cell], limits: tuple[float, float] | None) -> str:
    """What marks mean; empty where there is nothing to explain."""
    cells = [cell for cell in cells if cell.values]
    intervals = [(cell.mean or 0.0, cell.half_interval) for cell in cells if cell.half_interval is not None]
    if not intervals or limits is None:
        return ""
    cut = any(mean - half < limits[0] or mean + half > limits[1] for mean, half in intervals)
    return "mean with its 95 % interval; small dots are single runs" + ("; arrows: wider than the picture" if cut else "")
