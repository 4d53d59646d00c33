"""What runs of compare found: scores with their intervals, and differences to the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from detkd.errors import InputError
from detkd.runtime.report.blocks import Block, Cell, Table, is_number, text_of
from detkd.runtime.report.runs import Run, select

SHOWN = ("ap", "ap50", "ap75")  # scores whose differences stand beside those of other comparisons
_ENDS = ("value", "low", "high")


@dataclass(frozen=True)
class Compared:
    """A detector of a comparison, from results.json. scores, differences: {"value", "low", "high"} by score; no differences of the baseline."""

    name: str
    scores: dict[str, Any]
    differences: dict[str, Any]


def read_comparison(run: Run) -> list[Compared]:
    """The detectors that a run of compare put side by side, its baseline first. Raises InputError where its results do not say so."""
    listed = run.found.get("runs")
    if not isinstance(listed, list) or not all(isinstance(of, dict) and isinstance(of.get("scores"), dict) for of in listed):
        raise InputError(
            f"{run.folder / 'results.json'}: expected runs with scores, found {type(listed).__name__} of another form"
        )
    found = [Compared(str(of.get("name")), of["scores"], of.get("differences") or {}) for of in listed]
    if not all(isinstance(of.differences, dict) for of in found):
        raise InputError(f"{run.folder / 'results.json'}: expected differences by score, found others")
    return found


def comparison(run: Run, images: int) -> Iterator[Block]:
    """The table of a comparison, with intervals in words, as in its results.md."""
    if run.results is None:
        return
    compared = read_comparison(run)
    columns: list[tuple[str, dict[str, Any], str]] = []
    for of in compared:
        columns.append((of.name, of.scores, ""))
        if of.differences:
            columns.append((_less(of, compared[0]), of.differences, "+"))
    names = dict.fromkeys(score for of in compared for score in of.scores)
    rows = tuple((name, *(_interval(scores.get(name), sign) for _, scores, sign in columns)) for name in names)
    note = (
        f"In brackets the 95 % interval of {run.found.get('resamples')} draws of {run.found.get('images')} images. Differences are paired; "
        "those marked with a star have an interval without 0. As numbers: scores.csv."
    )
    yield Table("Comparison", ("score", *(title for title, _, _ in columns)), rows, note)


def comparison_table(runs: Sequence[Run]) -> list[Table]:
    """The differences that runs of compare found, a row each; none without any."""
    rows = []
    for run in runs:
        if run.kind == "compare" and run.results is not None:
            try:
                compared = read_comparison(run)
            except InputError:  # named where the run is read by itself
                continue
            ends = [[select(of.differences, f"{name}.{end}") for name in SHOWN for end in _ENDS] for of in compared]
            rows += [
                (f"{run.name}: {_less(of, compared[0])}", *(value if is_number(value) else None for value in row))
                for of, row in zip(compared, ends)
                if of.differences
            ]
    header = [text for name in SHOWN for text in (name, f"{name} low", f"{name} high")]
    note = "Differences of average precision, paired by image, and the ends of their 95 % intervals."
    return [Table("Comparisons", ("difference", *header), tuple(rows), note)] if rows else []


def _less(of: Compared, baseline: Compared) -> str:
    return f"{of.name} less {baseline.name}"


def _interval(of: Any, sign: str) -> Cell:
    """Like "0.250 [0.125, 0.375]"; nothing for a score that is not defined."""
    value, low, high = (select(of, end) for end in _ENDS)
    if not is_number(value):
        return None
    said = [
        f"{'+' if sign and number > 0 else ''}{text_of(float(number))}" for number in (value, low, high) if is_number(number)
    ]
    star = " *" if sign and len(said) == 3 and low * high > 0 else ""
    return f"{said[0]} [{said[1]}, {said[2]}]{star}" if len(said) == 3 else said[0]
