"""A report of runs, as values; nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detkd.errors import InputError
from detkd.runtime.report import scores
from detkd.runtime.report.blocks import Curves, Table
from detkd.runtime.report.compared import comparison_table
from detkd.runtime.report.lineage import Lineage, trace
from detkd.runtime.report.read import Section, read_section
from detkd.runtime.report.runs import NONE, Run, read_runs
from detkd.runtime.run import debugging


@dataclass(frozen=True)
class Report:
    """All that is shown: tables and charts over all runs, their lineage, each run by itself, and what could not be read."""

    title: str
    tables: tuple[Table, ...]
    charts: tuple[Curves, ...]
    lineage: Lineage
    sections: tuple[Section, ...]
    problems: tuple[str, ...]


def make_report(paths: Sequence[str | Path], images: int = 24, title: str = "Report") -> Report:
    """Read runs and put them side by side.

    Args:
        paths: of runs, or of folders with runs below. images: of each set that are shown.

    Raises InputError where no run can be read.
    """
    if isinstance(images, bool) or not isinstance(images, int) or images < 0:
        raise InputError(f"images: expected how many images of a set are shown, from 0, found {images!r}")
    found, problems = read_runs(paths)
    sections = []
    for run in found:
        try:
            section, damage = read_section(run, images)
            _tables([run])  # alone, so that what one run holds cannot keep the report of all from being made
            trace([run], hash_file=lambda path: "")
        except Exception as error:  # a damaged run raises whatever they stumble over
            if debugging():
                raise
            problems.append(f"{run.name}: cannot be shown ({type(error).__name__}: {error}); the run is left out")
            continue
        sections.append(section)
        problems += damage
    if not sections:
        raise InputError(NONE + "; ".join(problems))
    runs = [section.run for section in sections]
    charts = scores.loss_comparison([(section.run, section.blocks) for section in sections])
    return Report(title, tuple(_tables(runs)), tuple(charts), trace(runs), tuple(sections), tuple(problems))


def _tables(runs: Sequence[Run]) -> list[Table]:
    return [
        *scores.score_tables(runs),
        *comparison_table(runs),
        *scores.set_table(runs),
        *scores.other_table(runs),
    ]
