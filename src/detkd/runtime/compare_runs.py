"""The runs of `python -m detkd.compare`: read, and found to be about the same boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from detkd.classes import canonical
from detkd.errors import InputError
from detkd.evaluation.matching import Scene, make_scene
from detkd.runtime.scored_run import ScoredRun, read_scored_run
from detkd.structures import Detection


def read_runs(node: Any, root: str | None = None) -> list[ScoredRun]:
    """The runs of ``runs``, a list of folders or folders by name, the baseline first.

    root: where the data set is, if it is no longer where the runs' configs say. Raises InputError for fewer than two, and for two of one name.
    """
    if isinstance(node, DictConfig):
        folders = [(str(name), str(folder)) for name, folder in node.items()]
    else:
        given = [str(folder) for folder in node] if isinstance(node, ListConfig) else [] if node is None else [str(node)]
        folders = [(Path(folder).resolve().name, folder) for folder in given]
    if len(folders) < 2:
        raise InputError(f"runs: expected two or more folders, like 'runs=[runs/a,runs/b]', found {len(folders)}")
    if len({name for name, _ in folders}) < len(folders):
        raise InputError(
            f"runs: expected folders of different names, found {[folder for _, folder in folders]}; "
            f"give names, like 'runs={{a: {folders[0][1]}, b: {folders[1][1]}}}'"
        )
    return [read_scored_run(folder, name, root) for name, folder in folders]


def scenes_of(runs: Sequence[ScoredRun]) -> list[Scene]:
    """The runs' detections beside the boxes, one a run, all with the labels of the first.

    Classes are the same by name. Detections of classes that the first does not know are dropped: no box is of them. Raises InputError where images or
    boxes of two runs differ, and says what does.
    """
    first = runs[0]
    label_of = {canonical(name): label for label, name in enumerate(first.classes)}
    scenes = []
    for run in runs:
        to = torch.tensor([label_of.get(canonical(name), -1) for name in run.classes])
        _check_same(first, run, to)
        scenes.append(make_scene([_relabelled(d, to) for d in run.detections], first.truths))
    return scenes


def _check_same(first: ScoredRun, run: ScoredRun, to: torch.Tensor) -> None:
    mine, theirs = ([r.dataset.image_id(i) for i in range(len(r.dataset))] for r in (first, run))
    where = (
        f"runs: expected runs on one data set, found {first.name} ({first.dataset.root}) and {run.name} ({run.dataset.root})"
    )
    if mine != theirs:
        raise InputError(f"{where}: {len(mine)} and {len(theirs)} images, {len({*mine} & {*theirs})} of them in both")
    for image_id, one, other in zip(mine, first.truths, run.truths):
        same = len(one["labels"]) == len(other["labels"]) and all(
            torch.equal(one[key], other[key]) for key in ("boxes", "iscrowd", "ignore", "area")
        )
        if not same or not torch.equal(one["labels"], to[other["labels"]]):
            raise InputError(f"{where}: the boxes of image {image_id} differ")


def _relabelled(detection: Detection, to: torch.Tensor) -> Detection:
    labels = to[detection["labels"]]
    kept = labels >= 0
    return {"boxes": detection["boxes"][kept], "labels": labels[kept], "scores": detection["scores"][kept]}
