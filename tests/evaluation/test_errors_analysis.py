from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkd.errors import InputError
from detkd.evaluation.coco import score
from detkd.evaluation.errors import CURVES, error_curves
from detkd.evaluation.matching import make_scene

CLASSES = ("cat", "dog", "car", "none")
SUPER = {0: "animal", 1: "animal", 2: "vehicle"}
NOTHING = torch.zeros(0, 4)


def boxes(*rows: tuple[float, float, float, float, int]) -> dict[str, Any]:
    return {
        "boxes": torch.tensor([r[:4] for r in rows]).float().reshape(-1, 4),
        "labels": torch.tensor([r[4] for r in rows]).long(),
    }


def found(*rows: tuple[float, float, float, float, int, float]) -> dict[str, Any]:
    return {**boxes(*(r[:5] for r in rows)), "scores": torch.tensor([r[5] for r in rows])}


# one image; of the cat's detections, best first: on a car, on a dog, on nothing, at IoU .3, at .6, a second time, at 1
TRUTH = boxes(
    (0, 0, 100, 100, 0), (200, 0, 300, 100, 0), (400, 0, 500, 100, 0), (600, 0, 700, 100, 0),
    (0, 200, 100, 300, 1), (200, 200, 300, 300, 2),
)  # fmt: skip
FOUND = found(
    (200, 200, 300, 300, 0, 0.95), (0, 200, 100, 300, 0, 0.9), (800, 800, 900, 900, 0, 0.85), (0, 0, 30, 100, 0, 0.8),
    (200, 0, 260, 100, 0, 0.75), (202, 0, 258, 100, 0, 0.7), (400, 0, 500, 100, 0, 0.65),
)  # fmt: skip


def area(hits: list[bool], positives: int) -> float:
    """The mean over 101 recalls of the best precision at that recall or more."""
    points = [(sum(hits[: k + 1]) / positives, sum(hits[: k + 1]) / (k + 1)) for k in range(len(hits))]
    return sum(max((p for r, p in points if r >= k / 100 - 1e-12), default=0.0) for k in range(101)) / 101


def test_each_curve_forgives_what_it_says() -> None:
    curves = error_curves(make_scene([FOUND], [TRUTH]), CLASSES, SUPER)
    f, t = False, True
    expected = {
        "C75": area([f, f, f, f, f, f, t], 4),
        "C50": area([f, f, f, f, t, f, t], 4),
        "Loc": area([f, f, f, t, t, f, t], 4),  # the second of a box stays a false alarm
        "Sim": area([f, f, t, t, f, t], 4),
        "Oth": area([f, t, t, f, t], 4),
        "BG": 76 / 101,  # three of four: recalls 0 to .75
        "FN": 1.0,
    }
    assert curves.average_precision(["cat"])[:, 0] == pytest.approx(list(expected.values()))
    # nothing says dog or car
    assert curves.average_precision(["dog", "car"])[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert curves.average_precision()[1, 0] == pytest.approx(expected["C50"] / 3)
    assert curves.groups == {"animal": ("cat", "dog"), "vehicle": ("car",)}
    assert curves.classes == ("cat", "dog", "car")


def test_without_supercategories_sim_is_loc() -> None:
    curves = error_curves(make_scene([FOUND], [TRUTH]), CLASSES)
    loc, sim, oth = (CURVES.index(c) for c in ("Loc", "Sim", "Oth"))
    assert np.array_equal(curves.precision[loc], curves.precision[sim], equal_nan=True)
    assert curves.average_precision(["cat"])[oth, 0] > curves.average_precision(["cat"])[sim, 0]
    assert curves.groups == {}


def test_sizes() -> None:
    truth = boxes((0, 0, 20, 20, 0), (100, 0, 150, 50, 0))
    seen = found((0, 0, 20, 20, 0, 0.9), (300, 0, 310, 10, 0, 0.95))
    curves = error_curves(make_scene([seen], [truth]), ("a",))
    small, medium, large = (curves.average_precision()[:, a] for a in (1, 2, 3))
    assert small == pytest.approx([0.5] * 5 + [1, 1])  # the false alarm is small, so it comes first there
    assert medium == pytest.approx([0] * 6 + [1])
    assert np.isnan(large).all()


def scene_of(seed: int, crowds: bool = True) -> tuple[list[Any], list[Any]]:
    g = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(4):
        n, m = g.integers(0, 6, 2)
        corner, moved = g.integers(0, 60, (n, 2)), g.integers(0, 60, (m, 2))
        side, width = g.integers(10, 60, (n, 2)), g.integers(10, 60, (m, 2))
        truths.append(
            {
                "boxes": torch.tensor(np.concatenate([corner, corner + side], 1)).float().reshape(-1, 4),
                "labels": torch.tensor(g.integers(0, 3, n)),
                "iscrowd": torch.tensor(crowds & (g.random(n) < 0.2)),
            }
        )
        detections.append(
            {
                "boxes": torch.tensor(np.concatenate([moved, moved + width], 1)).float().reshape(-1, 4),
                "labels": torch.tensor(g.integers(0, 4, m)),
                "scores": torch.tensor(g.random(m)).float(),
            }
        )
    return detections, truths


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_no_curve_is_below_the_one_before_and_c50_and_c75_are_the_scores(seed: int) -> None:
    detections, truths = scene_of(seed)
    scene = make_scene(detections, truths)
    if not scene.labels:
        with pytest.raises(InputError, match="at least one box"):
            error_curves(scene, CLASSES, SUPER)
        return
    curves = error_curves(scene, CLASSES, SUPER, sizes=("all",))
    assert (np.diff(curves.precision[:, 0], axis=0) >= -1e-12).all()
    assert (curves.precision[-1] == 1).all()
    scores = score(detections, truths, CLASSES)
    assert curves.average_precision()[:2, 0] == pytest.approx([scores.ap75, scores.ap50], abs=1e-6)


def test_perfect_nothing_and_crowds() -> None:
    perfect = {**TRUTH, "scores": torch.ones(6)}
    assert error_curves(make_scene([perfect], [TRUTH]), CLASSES, SUPER).average_precision()[:, 0] == pytest.approx([1] * 7)
    nothing = {"boxes": NOTHING, "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    empty = error_curves(make_scene([nothing], [TRUTH]), CLASSES, SUPER)
    assert empty.average_precision()[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 1]
    # a crowd of dogs: what says dog inside it is left out always, what says cat is forgiven by Sim, however much of it
    truth = {**boxes((0, 0, 50, 50, 0), (100, 100, 300, 300, 1)), "iscrowd": torch.tensor([0, 1])}
    seen = found(
        (0, 0, 50, 50, 0, 0.5), (120, 120, 140, 140, 0, 0.9), (150, 150, 160, 160, 0, 0.8), (110, 110, 130, 130, 1, 0.9)
    )
    curves = error_curves(make_scene([seen], [truth]), CLASSES, SUPER)
    assert curves.classes == ("cat",)
    assert curves.average_precision()[:, 0] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 1, 1, 1])
