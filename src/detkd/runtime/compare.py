"""The numbers of `python -m detkd.compare`, and the files that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkd.evaluation.bootstrap import (
    SCORES,
    Draws,
    Interval,
    bootstrap,
    corrected_interval,
    draw_images,
    pivot_interval,
    within,
)
from detkd.evaluation.calibration import Reliability, judged_scores, reliability
from detkd.evaluation.changes import Judged, judge_images, most_changed
from detkd.evaluation.errors import CURVES, ErrorCurves, error_curves
from detkd.evaluation.matching import Bools, Floats, Scene
from detkd.runtime.analysis import write_csv
from detkd.runtime.run import write_text

AT = (CURVES.index("C50"), CURVES.index("C75"))
FEW = 5  # images with a box of a class or a size, below which draws of them say nothing: of one image all are alike


@dataclass(frozen=True)
class ClassScore:
    """AP of one class, its difference to the baseline's (None of the baseline), and how many images have a box of it."""

    ap: Interval
    difference: Interval | None
    images: int


@dataclass(frozen=True)
class Compared:
    """One detector beside the baseline.

    scores, differences: intervals by score, of itself and of it less the baseline (None of the baseline). per_class: by name. curves: see :class:`ErrorCurves`. confidences: scores of all detections and whether they are right. judged: one an image.
    """

    name: str
    scores: dict[str, Interval]
    differences: dict[str, Interval] | None
    per_class: dict[str, ClassScore]
    curves: ErrorCurves
    confidences: tuple[Floats, Bools]
    calibration: Reliability
    judged: list[Judged]


def compare(
    names: Sequence[str],
    scenes: Sequence[Scene],
    classes: Sequence[str],
    supercategories: dict[int, str],
    resamples: int,
    seed: int,
    score_threshold: float,
) -> list[Compared]:
    """Compare detectors on one set, the first of them the baseline. All draw the same images, so differences are paired."""
    weights = draw_images(len(scenes[0].true), resamples, seed)
    result: list[Compared] = []
    base: Draws | None = None
    for name, scene in zip(names, scenes):
        print(f"{name}: scored on {len(scene.true)} images and {resamples} draws of them ...", flush=True)
        draws = bootstrap(scene, weights)
        confidences = judged_scores(scene)
        result.append(
            Compared(
                name,
                {score: within(of, 0.0, 1.0) for score, of in _named(draws.scores, draws.score_images).items()},
                None if base is None else _named(draws.scores - base.scores, draws.score_images),
                {
                    classes[label]: ClassScore(
                        _sure(corrected_interval(row), count),
                        None if base is None else _sure(corrected_interval(row - base.per_class[k]), count),
                        count,
                    )
                    for k, (label, row, count) in enumerate(zip(draws.labels, draws.per_class, draws.images))
                },
                error_curves(scene, classes, supercategories),
                confidences,
                reliability(*confidences, threshold=score_threshold),
                judge_images(scene, score_threshold),
            )
        )
        base = draws if base is None else base
    return result


def changed(compared: Sequence[Compared]) -> list[tuple[int, int]]:
    """(image, change), most changed first; see :func:`~detkd.evaluation.changes.most_changed`."""
    return most_changed(compared[0].judged, [of.judged for of in compared[1:]])


def markdown(compared: Sequence[Compared], images: int, resamples: int, seed: int, notes: Sequence[str] = ()) -> str:
    """The table of scores, with what its brackets mean, and notes below."""
    head = ["run", *SCORES]
    lines = [_line(head), _line(["---"] * len(head))]
    for of in compared:
        lines.append(_line([of.name, *(_bracket(of.scores[s], "") for s in SCORES)]))
        if of.differences is not None:
            lines.append(_line(["difference", *(_bracket(of.differences[s], "+") for s in SCORES)]))
    note = (
        f"Points of AP on {images} images. In brackets the 95 % interval: basic bootstrap, {resamples} draws of the images with replacement "
        f"(seed {seed}). Differences are to {_cell(compared[0].name)}, on the same draws; one whose interval is without 0 is in bold. "
        "A number without brackets has no interval, as where fewer than "
        f"{FEW} images have a box of the size."
    )
    return "\n".join([*lines, "", note, *(line for said in notes for line in ("", _text_line(said)))]) + "\n"


def write_tables(folder: Path, compared: Sequence[Compared], image_ids: Sequence[int], files: Sequence[str]) -> None:
    """Write scores.csv, classes.csv, sizes.csv, curves.csv, calibration.csv and images.csv."""
    three = ("value", "low", "high")
    header = ["run", "score", *three, *(f"difference_{k}" for k in three)]
    write_csv(
        folder / "scores.csv",
        header,
        [
            [of.name, s, *_cells(of.scores[s]), *_cells(of.differences[s] if of.differences else None)]
            for of in compared
            for s in SCORES
        ],
    )
    write_csv(
        folder / "classes.csv",
        ["run", "class", "images", *header[2:]],
        [
            [of.name, c, score.images, *_cells(score.ap), *_cells(score.difference)]
            for of in compared
            for c, score in of.per_class.items()
        ],
    )
    sizes = compared[0].curves.sizes
    areas = [of.curves.average_precision() for of in compared]  # (7, A) each
    write_csv(
        folder / "sizes.csv",
        ["run", "size", *CURVES],
        [[of.name, size, *map(_text, table[:, a])] for of, table in zip(compared, areas) for a, size in enumerate(sizes)],
    )
    write_csv(
        folder / "curves.csv",
        ["run", "curve", *(f"recall_{k / 100:.2f}" for k in range(101))],
        [[of.name, CURVES[row], *map(_text, of.curves.curve()[row, 0])] for of in compared for row in AT],
    )
    write_csv(
        folder / "calibration.csv",
        ["run", "from", "to", "detections", "confidence", "precision"],
        [
            [of.name, f"{low:.4f}", f"{high:.4f}", int(count), _text(mean), _text(part)]
            for of in compared
            for r in [of.calibration]
            for low, high, count, mean, part in zip(r.edges, r.edges[1:], r.counts, r.confidence, r.precision)
        ],
    )
    write_csv(
        folder / "images.csv",
        ["image_id", "file", "change", *(f"{k} {of.name}" for of in compared for k in ("tp", "fp", "fn"))],
        [
            [image_ids[i], files[i], change, *(n for of in compared for n in of.judged[i].counts)]
            for i, change in changed(compared)
        ],
    )


def write_markdown(folder: Path, text: str) -> None:
    """Write results.md."""
    write_text(folder / "results.md", text)


def summarise(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """For results.json, one a run, the baseline first."""
    return [
        {
            "name": of.name,
            "scores": {s: asdict(i) for s, i in of.scores.items()},
            "differences": None if of.differences is None else {s: asdict(i) for s, i in of.differences.items()},
            "d_ece": of.calibration.ece,
            "detections": int(of.calibration.counts.sum()),
        }
        for of in compared
    ]


def _sure(of: Interval, images: int) -> Interval:
    """The value alone where too few images have such a box."""
    return of if images >= FEW else Interval(of.value, None, None)


def _named(draws: Floats, images: Sequence[int]) -> dict[str, Interval]:
    return {name: _sure(pivot_interval(row), count) for name, row, count in zip(SCORES, draws, images)}


def _bracket(of: Interval, sign: str) -> str:
    if of.value is None:
        return "-"
    if of.low is None or of.high is None:
        return f"{100 * of.value:{sign}.1f}"
    text = f"{100 * of.value:{sign}.1f} [{100 * of.low:{sign}.1f}, {100 * of.high:{sign}.1f}]"
    return f"**{text}**" if sign and of.low * of.high > 0 else text


def _cells(of: Interval | None) -> list[str]:
    return ["", "", ""] if of is None else ["" if v is None else f"{v:.6f}" for v in (of.value, of.low, of.high)]


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def _cell(text: str) -> str:
    return _text_line(text).replace("|", r"\|")


def _text_line(text: str) -> str:
    return text.replace("\n", " ").replace("<", "&lt;")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"
