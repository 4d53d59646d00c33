"""What a report shows of one run: a small reader for each kind of run, and one for all that a reader does not know."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkd.errors import InputError
from detkd.runtime.report.blocks import Block, Cell, Curves, Table
from detkd.runtime.report.compared import comparison
from detkd.runtime.report.pictures import figures, set_gallery
from detkd.runtime.report.runs import Run
from detkd.runtime.report.tables import csv_table, log_curves, result_tables
from detkd.runtime.run import debugging

BINS = 20  # of the histogram of confidence
PICTURES = 24  # of a run's figures that are shown
# Of results.json, what a report shows elsewhere: hashes in the lineage, the rest at the head of a run.
_HEAD = ("command", "versions", "pictures")  # not a result
_READ = {"compare": ("runs",)}  # by a reader of their own
# Where runs leave pictures beside those in their folder itself. What else an inversion has there are its images in work.
_PICTURES = {"compare": ("pictures/*.png",), "invert": ("pictures/objects.png",)}


@dataclass(frozen=True)
class Section:
    """A run and what is shown of it, in order."""

    run: Run
    blocks: tuple[Block, ...]


Part = Callable[[], Iterator[Block]]


def read_section(run: Run, images: int) -> tuple[Section, list[str]]:
    """All that is shown of a run.

    images: at most this many of a set.

    Returns the section, and what is damaged beside its results: that part is left out, the others stay.
    """
    pictures = [path for pattern in ("*.png", *_PICTURES.get(run.kind, ())) for path in _files(run.folder, pattern)]
    parts: list[Part] = [
        lambda: iter(result_tables({k: v for k, v in run.found.items() if k not in (*_HEAD, *_READ.get(run.kind, ()))})),
        *(part for part in (_part(reader, run, images) for reader in READERS.get(run.kind, ()))),
        lambda: _curves(run.folder),
        *(_part(_figures, run, images, path) for path in pictures[:PICTURES]),
        *(_part(_table, run, images, path) for path in _files(run.folder, "*.csv")),
    ]
    blocks: list[Block] = []
    problems = []
    if more := [path.relative_to(run.folder).as_posix() for path in pictures[PICTURES:]]:
        names = ", ".join(more[:3]) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
        problems.append(f"{run.name}: {PICTURES} of {len(pictures)} pictures are shown; not shown: {names}")
    for part in parts:
        try:
            blocks += part()
        except InputError as error:
            problems.append(f"{run.name}: {error}; it is left out")
        except Exception as error:  # a damaged file raises whatever its reader stumbles over
            if debugging():
                raise
            problems.append(f"{run.name}: a part cannot be read ({type(error).__name__}: {error}); it is left out")
    return Section(run, tuple(blocks)), problems


def _part(reader: Callable[..., Iterator[Block]], *arguments: Any) -> Part:
    return lambda: reader(*arguments)


def _set(run: Run, images: int) -> Iterator[Block]:
    """A set: some of its images, and how many objects each class has."""
    gallery = set_gallery(run.folder, images)
    if gallery is not None:
        yield gallery
        yield _class_counts(run.folder / "instances.json")


def _class_counts(path: Path) -> Table:
    try:
        instances = json.loads(path.read_bytes())
        count = Counter(annotation["category_id"] for annotation in instances["annotations"])
        rows = tuple((str(of["name"]), count[of["id"]]) for of in instances["categories"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a COCO json, found {type(error).__name__}: {error}") from None
    return Table("Objects", ("class", "objects"), rows)


def _detections(run: Run, images: int) -> Iterator[Block]:
    """What was found: how much, and with what confidence."""
    path = run.folder / "detections.json"
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_bytes())
        scores = [_score(detection["score"]) for detection in found]
        with_any = len({detection["image_id"] for detection in found})
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise InputError(
            f"{path}: expected detections in COCO's results format, found {type(error).__name__}: {error}"
        ) from None
    total = run.found.get("images")
    rows: tuple[tuple[Cell, ...], ...] = (
        ("images", total),
        ("images with a detection", with_any),
        ("detections", len(scores)),
        ("detections of score above .5", sum(score > 0.5 for score in scores)),
        ("mean score", sum(scores) / len(scores) if scores else None),
    )
    labelled = (
        ""
        if run.found.get("ap") is not None or run.results is None
        else "Not scored: the images have no labels, or no box of a known class."
    )
    yield Table("Detections", ("of the detections", "value"), rows, labelled)
    if scores:
        bins = Counter(int(min(max(score, 0.0) * BINS, BINS - 1)) for score in scores)
        yield Curves("detections by score", "score", {"detections": [((i + 0.5) / BINS, float(bins[i])) for i in range(BINS)]})


def _score(value: Any) -> float:
    if not math.isfinite(score := float(value)):
        raise ValueError(f"a score of {score}")
    return score


# By the command that made the run. What is not here is shown by its results, logs, csv files and pictures alone.
READERS: dict[str, tuple[Callable[[Run, int], Iterator[Block]], ...]] = {
    "invert": (_set,),
    "tile": (_set,),
    "evaluate": (_detections,),
    "compare": (comparison,),
}


def _curves(folder: Path) -> Iterator[Block]:
    last = folder / "metrics.csv"
    if last.is_file():
        yield from log_curves([*sorted(folder.glob("metrics.*.csv"), key=_start), last])


def _start(path: Path) -> tuple[int, str]:
    """The number in metrics.1.csv."""
    number = path.suffixes[0].strip(".") if len(path.suffixes) > 1 else ""
    return int(number) if number.isdecimal() else 0, path.name


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of a run's folder by name, without logs, hidden files and an earlier report."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(("metrics.", ".", "report.")))


def _figures(run: Run, images: int, path: Path) -> Iterator[Block]:
    yield figures(run.folder, [path.relative_to(run.folder).as_posix()])


def _table(run: Run, images: int, path: Path) -> Iterator[Block]:
    yield csv_table(path)
