"""TIDE: how much AP50 each kind of error costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkd.errors import InputError
from detkd.evaluation.matching import MAX_DETECTIONS, Boxes, Scene, greedy, iou
from detkd.evaluation.precision import average_precision

ERRORS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
SPECIAL = ("FP", "FN")
_FIXABLE = ("Cls", "Loc")

Box = tuple[int, int]  # image and number of a box in it


@dataclass(frozen=True)
class Tide:
    """What the errors cost.

    ap50: mean over the classes with a box, in [0, 1]. dap: by kind of error, the six and then FP and FN, how much AP50 would rise if all of
    this kind alone were mended. counts: how many there are of the six.
    """

    ap50: float
    dap: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Found:
    """A detection. kind: "hit" or one of the first five of ``ERRORS``. box: what it found, or would have if mended.

    void: it lies in a crowd, so it is no false alarm.
    """

    score: float
    label: int
    kind: str
    box: Box | None
    void: bool = False


def tide(scene: Scene, t_f: float = 0.5, t_b: float = 0.1) -> Tide:
    """Sort errors into kinds, and mend one kind after the other, each by itself.

    A detection that found no box of its class at IoU ``t_f`` is, with the highest IoU over the boxes of its own class and of other classes,
    Loc: own in [t_b, t_f]. Else Cls: others in [t_f, 1]. Else Dupe: own in (t_f, 1], and the box is taken. Else Bkg: both in [0, t_b]. Else
    Both: others in (t_b, t_f). Miss: a box that nothing found and that no Cls or Loc detection overlaps most.

    Mending: of the Cls and Loc detections that overlap one box most, which nothing found, the best score finds it when its kind is mended; all
    others of the kind are suppressed. Both, Dupe and Bkg are suppressed. Miss: there are fewer boxes to find. FP: all false alarms are
    suppressed. FN: only found boxes are there to find.

    Args:
        scene: see :func:`~detkd.evaluation.matching.make_scene`. Detections of classes without a box are left out, as in the scores. Those that
            lie in a crowd of their class are no false alarms, and Both, Dupe and Bkg among them are left out; Loc and Cls are mended.

    Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, sections 2.2 and 2.3. Where the paper leaves
    a choice, this gives the numbers of its authors' toolbox (tidecv 1.0.1), from which published tables are: the order of the kinds, crowds,
    and that a detection which found its box keeps it, where the paper lets the best score have it. A class in which mending leaves no box to
    find is left out of the mean without a false alarm and scores 0 with one; the paper does not name the case. Where no class remains
    AP50 is 1, where the toolbox fails. The toolbox cuts negative costs off at 0; here mending never lowers AP50, so there are none. Raises
    InputError without any box.
    """
    if not 0 < t_b < t_f <= 1:
        raise ValueError(f"expected 0 < t_b < t_f <= 1, got t_b={t_b} and t_f={t_f}")
    labels = scene.labels
    if not labels:
        raise InputError("data: expected at least one box to analyse errors by, found none")
    found: list[_Found] = []
    there: dict[int, set[Box]] = {label: set() for label in labels}
    for number, (mine, theirs) in enumerate(zip(scene.found, scene.true)):
        found += _sort_image(number, _scored(mine, labels), theirs, t_f, t_b)
        for g in np.flatnonzero(~theirs.void):
            there[int(theirs.labels[g])].add((number, int(g)))
    found.sort(key=lambda f: -f.score)
    total = {label: len(boxes) for label, boxes in there.items()}
    hits = {f.box for f in found if f.kind == "hit"}
    covered = hits | {f.box for f in found if f.kind in _FIXABLE}
    label_of = {box: label for label, boxes in there.items() for box in boxes}
    ap50 = _mean(found, total)
    mended = {
        "Cls": _mean(_mend(found, "Cls", label_of), total),
        "Loc": _mean(_mend(found, "Loc", label_of), total),
        **{kind: _mean([f for f in found if f.kind != kind], total) for kind in ("Both", "Dupe", "Bkg")},
        "Miss": _mean(found, {label: len(boxes & covered) for label, boxes in there.items()}),
        "FP": _mean([f for f in found if f.kind == "hit"], total),
        "FN": _mean(found, {label: len(boxes & hits) for label, boxes in there.items()}),
    }
    counts = {kind: sum(f.kind == kind for f in found) for kind in ERRORS[:-1]}
    counts["Miss"] = len(label_of) - len(label_of.keys() & covered)
    return Tide(ap50, {kind: value - ap50 for kind, value in mended.items()}, counts)


def _scored(found: Boxes, labels: Sequence[int]) -> Boxes:
    """Detections of the classes that are scored, the best 100 of each."""
    kept = [np.flatnonzero(found.labels == label)[:MAX_DETECTIONS] for label in labels]
    return found.of(np.sort(np.concatenate(kept)))


def _sort_image(number: int, found: Boxes, true: Boxes, t_f: float, t_b: float) -> list[_Found]:
    overlap = iou(found, true)  # (D, G)
    own = found.labels[:, None] == true.labels[None]
    # boxes of other classes are out of reach of matching, which needs a positive overlap
    taken = greedy(np.where(own, overlap, -1.0), true.void[None], true.void, np.asarray([min(t_f, 1 - 1e-10)]))[0, 0]
    counts = ~true.void[None]
    mine, others = (np.where(own & counts, overlap, 0.0), np.where(~own & counts, overlap, 0.0))
    sorted_: list[_Found] = []
    for d, (score, label) in enumerate(zip(found.scores.tolist(), found.labels.tolist())):
        void = bool(taken[d] >= 0 and true.void[taken[d]])
        best, other = (float(row[d].max(initial=0.0)) for row in (mine, others))
        box: int | None = None
        if taken[d] >= 0 and not void:
            kind, box = "hit", int(taken[d])
        elif t_b <= best <= t_f:
            kind, box = "Loc", int(mine[d].argmax())
        elif other >= t_f:
            kind, box = "Cls", int(others[d].argmax())
        elif best >= t_f:
            kind = "Dupe"
        else:
            kind = "Bkg" if max(best, other) <= t_b else "Both"
        if box is not None or not void:
            sorted_.append(_Found(score, label, kind, None if box is None else (number, box), void))
    return sorted_


def _mend(found: Sequence[_Found], kind: str, label_of: dict[Box, int]) -> list[_Found]:
    """Let the errors of a kind find their boxes; ``found`` is best score first, and so is what comes back."""
    hits = {f.box for f in found if f.kind == "hit"}
    first: dict[Box, _Found] = {}  # of what is about a box that nothing found, Cls and Loc alike, the best score
    for f in found:
        if f.kind in _FIXABLE and f.box is not None and f.box not in hits:
            first.setdefault(f.box, f)
    result: list[_Found] = []
    for f in found:
        if f.kind != kind:
            result.append(f)
        elif f.box is not None and first.get(f.box) is f:
            result.append(_Found(f.score, label_of[f.box], "hit", f.box))
    return result


def _mean(found: Sequence[_Found], total: dict[int, int]) -> float:
    """AP50 over the classes of ``total`` with a box or a false alarm, of detections best score first; 1 without any."""
    hits: dict[int, list[bool]] = defaultdict(list)
    for f in found:
        if not f.void:
            hits[f.label].append(f.kind == "hit")
    values = [
        average_precision(np.asarray(hits[label], bool), count) if count else 0.0
        for label, count in total.items()
        if count or hits[label]
    ]
    return float(np.mean(values)) if values else 1.0
