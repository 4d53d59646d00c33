"""The seven curves of COCO's error analysis: what a detector would score if one kind of error after the other were forgiven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detkd.errors import InputError
from detkd.evaluation.matching import AREAS, Floats, Scene, match_class
from detkd.evaluation.precision import RECALLS, precision_curve

CURVES = ("C75", "C50", "Loc", "Sim", "Oth", "BG", "FN")
THRESHOLDS = (0.75, 0.5, 0.1)


@dataclass(frozen=True)
class ErrorCurves:
    """Precision at 101 recalls by curve, size and class.

    classes: names of the K classes with a box, in the order of their labels. sizes: names of the A ranges of area. groups: the classes of each
    supercategory by name; empty where the data set has none, and then Sim is Loc. precision: (7, A, K, 101) in the order of ``CURVES``, NaN
    for a class without a box of that size.
    """

    classes: tuple[str, ...]
    sizes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    precision: Floats

    def curve(self, classes: Sequence[str] | None = None) -> Floats:
        """(7, A, 101) precision, mean over classes that have a box of the size; NaN where none has. classes: None for all."""
        kept = [k for k, name in enumerate(self.classes) if classes is None or name in classes]
        chosen = self.precision[:, :, kept]
        known = ~np.isnan(chosen)
        count = known.sum(2)
        total = np.where(known, chosen, 0.0).sum(2)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def average_precision(self, classes: Sequence[str] | None = None) -> Floats:
        """(7, A) areas below :meth:`curve`."""
        return np.asarray(self.curve(classes).mean(-1))


def error_curves(
    scene: Scene,
    classes: Sequence[str],
    supercategories: Mapping[int, str] | None = None,
    sizes: Sequence[str] = ("all", "small", "medium", "large"),
) -> ErrorCurves:
    """Analyse all detections.

    C75, C50: precision over recall at IoU .75 and .5. Loc: at .1, so that wrong places are forgiven, but not several detections of one box;
    the same IoU below. Sim: a detection that finds a box of another class of the same supercategory is no false alarm. Oth: nor is one that
    finds a box of any other class. BG: nor is any other; the curve of a class is 1 up to the highest recall, then 0. FN: nothing is missed,
    so it is 1. Each curve is nowhere below the one before, but for sizes, where the box that a detection takes decides whether it counts.

    Args:
        scene: see :func:`~detkd.evaluation.matching.make_scene`. classes: what labels mean.
        supercategories: by label; a class without one is alone in its own. None or empty: Sim is Loc.
        sizes: of ``AREAS``.

    Source: the analysis at cocodataset.org/#detection-eval, which takes the other classes' boxes for boxes of the class to ignore, and says
    that BG is a step function. Such a box takes one detection; a second on it is a false alarm until BG. Raises InputError without any box.
    """
    labels = scene.labels
    if not labels:
        raise InputError("data: expected at least one box to analyse errors by, found none")
    of = dict(supercategories or {})
    every = {*labels, *(int(label) for boxes in scene.true for label in boxes.labels)}
    areas = [AREAS[size] for size in sizes]
    precision = np.full((len(CURVES), len(areas), len(labels), len(RECALLS)), np.nan)
    for k, label in enumerate(labels):
        similar = {other for other in every - {label} if label in of and of.get(other) == of[label]}
        plain = match_class(scene, label, THRESHOLDS, areas)
        for a in range(len(areas)):
            precision[:3, a, k] = [precision_curve(plain, t, a) for t in range(len(THRESHOLDS))]
        for row, absorbing in ((3, similar), (4, every - {label})):
            forgiven = match_class(scene, label, THRESHOLDS[-1:], areas, absorbing) if absorbing else None
            for a in range(len(areas)):
                precision[row, a, k] = precision[2, a, k] if forgiven is None else precision_curve(forgiven, 0, a)
        known = ~np.isnan(precision[4, :, k])
        precision[5, :, k] = np.where(known, precision[4, :, k] > 0, np.nan)
        precision[6, :, k] = np.where(known, 1.0, np.nan)
    names = tuple(classes[label] for label in labels)
    groups: dict[str, tuple[str, ...]] = {}
    for label, name in zip(labels, names):
        if label in of:
            groups[of[label]] = (*groups.get(of[label], ()), name)
    return ErrorCurves(names, tuple(sizes), groups, precision)
