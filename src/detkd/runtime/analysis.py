"""The files of `python -m detkd.analyze`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkd.evaluation.errors import CURVES, ErrorCurves
from detkd.evaluation.matching import Floats
from detkd.evaluation.tide import Tide
from detkd.runtime.error_figures import CurvesSheet, tide_figure
from detkd.runtime.plotting import file_name
from detkd.runtime.run import write_text
from detkd.runtime.stale import listed

Group = tuple[str, str, Sequence[str] | None]  # overall, supercategory or class; its name; its classes, None for all


def groups_of(curves: ErrorCurves) -> Iterator[Group]:
    """All that there is a curve of: all classes, each supercategory, each class."""
    yield "overall", "all classes", None
    for name, members in curves.groups.items():
        yield "supercategory", name, members
    for name in curves.classes:
        yield "class", name, (name,)


def write_analysis(folder: Path, name: str, curves: ErrorCurves, found: Tide, class_figures: bool) -> dict[str, Any]:
    """Write the tables and pictures of one run into ``folder``, and give what belongs into results.json.

    class_figures: whether each class has a picture too; the tables always have them all.
    """
    rows: list[list[object]] = []
    details: list[dict[str, Any]] = []
    numbered: list[Path] = []
    sheet = CurvesSheet(curves.sizes, bool(curves.groups))
    folders = {"overall": "", "supercategory": "supercategories", "class": "classes"}
    for number, (kind, title, classes) in enumerate(groups_of(curves)):
        curve = curves.curve(classes)  # (7, A, 101)
        areas = curve.mean(-1)
        for a, size in enumerate(curves.sizes):
            rows.append([kind, title, size, *(_text(v) for v in areas[:, a])])
        details.append({"kind": kind, "name": title, "ap": _by_size(curves, areas), "precision": _precision(curves, curve)})
        if kind != "class" or class_figures:
            place = folder / ("overall.png" if kind == "overall" else f"{folders[kind]}/{file_name(number, title)}")
            sheet.draw(f"{name}: {title}", curve, place)
            numbered += [] if kind == "overall" else [place]
    write_csv(folder / "errors.csv", ["kind", "name", "size", *CURVES], rows)
    content = {"run": name, "supercategories": curves.groups or None, "groups": details}
    write_text(folder / "errors.json", json.dumps(content) + "\n")  # long lists: not a number a line
    write_csv(
        folder / "tide.csv",
        ["error", "dap50", "count"],
        [[k, f"{v:.6f}", found.counts.get(k, "")] for k, v in found.dap.items()],
    )
    tide_figure(name, found, folder / "tide.png")
    return {
        "run": name,
        "supercategories": bool(curves.groups),
        "curves": _by_size(curves, curves.average_precision()),
        "tide": {"ap50": found.ap50, "dap": found.dap, "counts": found.counts},
    } | listed(folder, numbered)


def summary(results: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    curves = "  ".join(f"{name} {_three(value)}" for name, value in results["curves"]["all"].items())
    tide = "  ".join(f"{name} {100 * value:.2f}" for name, value in results["tide"]["dap"].items())
    return f"area below each curve: {curves}\nAP50 lost, in points: {tide}"


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a csv file whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def _by_size(curves: ErrorCurves, areas: Floats) -> dict[str, dict[str, float | None]]:
    """{size: {curve: area}} of (7, A); None where no class has a box of the size."""
    return {size: {c: _value(areas[k, a]) for k, c in enumerate(CURVES)} for a, size in enumerate(curves.sizes)}


def _precision(curves: ErrorCurves, curve: Floats) -> dict[str, dict[str, list[float]] | None]:
    """{size: {curve: 101 values}}, without FN, which is 1."""
    return {
        size: None if np.isnan(curve[:, a]).any() else {c: curve[k, a].round(5).tolist() for k, c in enumerate(CURVES[:-1])}
        for a, size in enumerate(curves.sizes)
    }


def _value(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
