"""Scores of all runs side by side: those taken on the same boxes in one table, others apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from detkd.runtime.report.blocks import Block, Cell, Curves, Table, is_number
from detkd.runtime.report.runs import Run, resolved, select
from detkd.runtime.report.tables import TOTALS

SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
SETS = (
    *("images", "teacher_ap50", "verifier_ap50", "objects_per_image", "objects_per_image_start", "accepted", "agreement"),
    *("duplicates", "seconds", "images_per_second"),
)
NOTE = "Average precision by COCO's rules, from 0 to 1; empty where it is not defined."


def score_tables(runs: Sequence[Run]) -> list[Table]:
    """One table of scores for every set that runs were scored on, each followed by its per-class table where there is one."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if any(is_number(run.found.get(key)) for key in SCORES):
            groups.setdefault(scored_on(run), []).append(run)
    tables = []
    known = [_recorded(members[0]) for members in groups.values()]
    for number, members in enumerate(groups.values()):
        name = f"Scores on {set_name(members[0])}"
        which = f" ({number + 1} of {len(groups)})" if len(groups) > 1 else ""
        note = " ".join([NOTE, *_apart(known[number], known[:number] + known[number + 1 :])])
        rows = tuple((run.name, run.kind, *(_cell(run, key) for key in (*SCORES, "images"))) for run in members)
        tables.append(Table(name + which, ("run", "by", *SCORES, "images"), rows, note))
        tables += class_table(members, f"Per class: {set_name(members[0])}{which}")
    return tables


def _recorded(run: Run) -> bool:
    known = run.found.get("scored_sha256")
    return isinstance(known, str) and bool(known)


def _apart(recorded: bool, others: Sequence[bool]) -> Iterator[str]:
    """What is known of a table's set against those of the others, and of the runs in it. recorded: whether a hash says which boxes they are."""
    if not recorded:
        yield "Which boxes these are was not recorded: runs are together here by the name of the set."
    if others and recorded and all(others):
        yield "Scored on another set than the other tables: do not compare across tables."
    elif others and recorded and any(others):
        yield "Scored on another set than the other tables that recorded theirs; the rest may be of the same set."
    elif others:
        yield "Other tables may be of the same set: not recorded. Compare across tables only where you know."


def scored_on(run: Run) -> str:
    """What tells one scored set from another: the hash of its boxes, else its name, place and number of images."""
    if _recorded(run):
        return str(run.found["scored_sha256"])
    held_out = run.found.get("scored_on") == "held-out images"
    place = f"{select(run.config, 'data')!r} {run.config.get('seed')}" if held_out else str(_place(run))
    return f"{place} {run.found.get('images')}"


def class_table(runs: Sequence[Run], title: str) -> list[Table]:
    """Average precision by class, a column each run; none where no run has it."""
    scored = [run for run in runs if isinstance(run.found.get("per_class"), dict) and run.found["per_class"]]
    if not scored:
        return []
    classes = dict.fromkeys(str(name) for run in scored for name in run.found["per_class"])
    columns = [{str(name): value for name, value in run.found["per_class"].items()} for run in scored]
    rows = tuple((name, *(column.get(name) for column in columns)) for name in classes)
    return [Table(title, ("class", *(run.name for run in scored)), rows, "ap of each class; empty for a class without a box.")]


def set_table(runs: Iterable[Run]) -> list[Table]:
    """The sets that were made, side by side; none without any."""
    made = [run for run in runs if run.manifest is not None and run.results is not None]
    keys = [key for key in SETS if any(key in run.found for run in made)]
    rows = tuple((run.name, run.kind, *(_cell(run, key) for key in keys)) for run in made)
    note = "AP50 of the synthetic images against the boxes asked for. It says how well the detectors see them, not how good a student becomes."
    return [Table("Sets", ("set", "by", *keys), rows, note)] if made else []


def other_table(runs: Iterable[Run]) -> list[Table]:
    """For each further kind of run the numbers of all its runs, a row each."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        if run.kind not in ("invert", "tile", "distill", "compare") and not any(
            is_number(run.found.get(key)) for key in SCORES
        ):
            kinds.setdefault(run.kind, []).append(run)
    tables = []
    for kind, members in kinds.items():
        keys = list(dict.fromkeys(k for run in members for k, v in run.found.items() if is_number(v)))
        if keys:
            rows = tuple((run.name, *(_cell(run, key) for key in keys)) for run in members)
            tables.append(Table(f"Runs of {kind}", ("run", *keys), rows))
    return tables


def loss_comparison(sections: Sequence[tuple[Run, Sequence[Block]]], most: int = 8) -> list[Curves]:
    """The total loss of runs in one chart, for every total that two or more have logged; of more than ``most`` the first, which is said."""
    charts = []
    for total in TOTALS:
        lines = {
            run.name: block.lines[total]
            for run, blocks in sections
            for block in blocks
            if isinstance(block, Curves) and block.title == total
        }
        if len(lines) >= 2:
            note = f"the first {most} of {len(lines)} runs; each has its own below" if len(lines) > most else ""
            charts.append(Curves(total, "step", dict(list(lines.items())[:most]), note))
    return charts


def _place(run: Run) -> str | None:
    """The folder that a run was scored on, as its config or its results name it."""
    for name in (run.found.get("scored_on"), select(run.config, "data.root") if "student" not in run.config else None):
        if isinstance(name, str) and name:
            return name if name == "held-out images" else str(resolved(name) or name)
    return None


def set_name(run: Run) -> str:
    """What to call the set that a run was scored on."""
    place = _place(run)
    if place == "held-out images":
        return "held-out images"
    return "/".join(Path(place).parts[-2:]) if place else "an unnamed set"


def _cell(run: Run, key: str) -> Cell:
    value = run.found.get(key)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
