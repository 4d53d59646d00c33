from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkd.errors import InputError
from detkd.evaluation.coco import score
from detkd.evaluation.matching import make_scene
from detkd.evaluation.tide import ERRORS, SPECIAL, Tide, tide

TRUTH = [(0, 0, 100, 100, 0), (200, 0, 300, 100, 0), (400, 0, 500, 100, 1), (600, 0, 700, 100, 1)]


def scene(found: list[tuple[float, ...]], truth: list[tuple[float, ...]] = TRUTH) -> Any:
    def part(rows: list[tuple[float, ...]]) -> dict[str, Any]:
        return {
            "boxes": torch.tensor([r[:4] for r in rows]).float().reshape(-1, 4),
            "labels": torch.tensor([r[4] for r in rows]).long(),
        }

    return make_scene([{**part(found), "scores": torch.tensor([r[5] for r in found])}], [part(truth)])


def kinds(result: Tide) -> dict[str, float]:
    return {name: value for name, value in result.dap.items() if abs(value) > 1e-9}


PERFECT = [(*box, 0.9 - 0.1 * k) for k, box in enumerate(TRUTH)]


def test_a_perfect_detector_makes_no_errors() -> None:
    result = tide(scene(PERFECT))
    assert result.ap50 == pytest.approx(1)
    assert result.dap == pytest.approx(dict.fromkeys((*ERRORS, *SPECIAL), 0.0))
    assert set(result.counts.values()) == {0}


def test_only_localisation_errors_cost_all_that_is_missing() -> None:
    result = tide(scene([(x1, y1, x1 + 40, y2, c, s) for x1, y1, _, y2, c, s in PERFECT]))  # IoU .4
    assert result.ap50 == 0
    assert result.dap["Loc"] == pytest.approx(1)
    assert result.counts == {"Cls": 0, "Loc": 4, "Both": 0, "Dupe": 0, "Bkg": 0, "Miss": 0}
    half = tide(scene([*PERFECT[:1], *((x1, y1, x1 + 40, y2, c, s) for x1, y1, _, y2, c, s in PERFECT[1:2]), *PERFECT[2:]]))
    assert half.dap["Loc"] == pytest.approx(1 - half.ap50)
    assert half.ap50 == pytest.approx((51 / 101 + 1) / 2)


def test_only_classification_errors() -> None:
    result = tide(scene([(*row[:4], 1 - row[4], row[5]) for row in PERFECT]))
    assert result.dap["Cls"] == pytest.approx(1 - result.ap50) == pytest.approx(1)
    assert result.counts["Cls"] == 4
    assert result.counts["Miss"] == 0  # a wrong class is why they were missed


def test_only_misses() -> None:
    result = tide(scene([PERFECT[0], *PERFECT[2:]]))
    assert result.ap50 == pytest.approx((51 / 101 + 1) / 2)
    assert kinds(result) == pytest.approx({"Miss": 1 - result.ap50, "FN": 1 - result.ap50})
    assert tide(scene(PERFECT[:2])).dap["Miss"] == pytest.approx(0.5)  # a class of which nothing is left to find, nor said
    # two classes at .5, behind a false alarm each, and one that is missed; tidecv 1.0.1 says the same
    three = [(200 * k, 0, 200 * k + 100, 100, k) for k in range(3)]
    alarms = [(800, 800, 900, 900, 0, 0.9), (700, 800, 750, 900, 1, 0.9)]
    missed = tide(scene([(*three[0], 0.5), (*three[1], 0.5), *alarms], three))
    assert missed.ap50 == pytest.approx(1 / 3)
    assert kinds(missed) == pytest.approx({"Bkg": 1 / 3, "Miss": 1 / 6, "FP": 1 / 3, "FN": 1 / 6})
    # one of the class that is missed is said elsewhere: mending the miss leaves a false alarm and nothing to find
    said = tide(scene([(*three[0], 0.5), (*three[1], 0.5), *alarms, (700, 800, 750, 900, 2, 0.9)], three))
    assert kinds(said) == pytest.approx({"Bkg": 1 / 3, "FP": 1 / 3})


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("Dupe", (2, 0, 100, 100, 0, 0.95)),  # IoU .98; the better box has the lower score
        ("Bkg", (800, 800, 900, 900, 0, 0.95)),
        ("Bkg", (95, 0, 195, 100, 0, 0.95)),  # IoU .026
        ("Both", (400, 0, 430, 100, 0, 0.95)),  # IoU .3 with a box of the other class
    ],
)
def test_false_alarms_of_one_kind(kind: str, row: tuple[float, ...]) -> None:
    # one false alarm in front of two hits: precision 1/2, then 2/3, so 2/3 at all recalls
    result = tide(scene([*PERFECT, row]))
    assert result.counts[kind] == 1
    assert sum(result.counts.values()) == 1
    if kind == "Dupe":  # it comes first, so it is the hit, and the other the duplicate behind it: precision 1, then 2/3
        assert result.ap50 == pytest.approx(((51 + 50 * 2 / 3) / 101 + 1) / 2)
    else:
        assert result.ap50 == pytest.approx((2 / 3 + 1) / 2)
    assert kinds(result) == pytest.approx({kind: 1 - result.ap50, "FP": 1 - result.ap50})


def test_a_detection_that_found_its_box_keeps_it() -> None:
    # IoU .4 and sure, IoU 1 and not, with a false alarm between: the hit stays where it is, the first is suppressed
    truth = [(0, 0, 100, 100, 0)]
    found = [(0, 0, 40, 100, 0, 0.9), (500, 500, 600, 600, 0, 0.5), (0, 0, 100, 100, 0, 0.1)]
    result = tide(scene(found, truth))
    assert result.ap50 == pytest.approx(1 / 3)
    assert result.counts == {"Cls": 0, "Loc": 1, "Both": 0, "Dupe": 0, "Bkg": 1, "Miss": 0}
    assert result.dap["Loc"] == pytest.approx(1 / 2 - 1 / 3)
    assert result.dap["Bkg"] == pytest.approx(1 / 2 - 1 / 3)
    assert result.dap["FP"] == pytest.approx(1 - 1 / 3)
    assert result.dap["FN"] == result.dap["Miss"] == 0


def test_of_several_errors_about_one_box_only_the_best_score_is_mended() -> None:
    truth = [(0, 0, 100, 100, 0), (500, 500, 600, 600, 1)]
    wrong_class, wrong_place = (0, 0, 100, 100, 1), (0, 0, 40, 100, 0)
    sure_class = tide(scene([(*wrong_class, 0.9), (*wrong_place, 0.8), (*wrong_place, 0.7)], truth))
    assert sure_class.counts == {"Cls": 1, "Loc": 2, "Both": 0, "Dupe": 0, "Bkg": 0, "Miss": 1}
    # the box of class 0 is found first; mending Loc finds nothing, and suppresses what costs nothing
    assert kinds(sure_class) == pytest.approx({"Cls": 1 / 2})
    sure_place = tide(scene([(*wrong_class, 0.7), (*wrong_place, 0.8), (*wrong_place, 0.6)], truth))
    assert kinds(sure_place) == pytest.approx({"Loc": 1 / 2})


def test_what_lies_in_a_crowd_is_no_false_alarm_but_may_be_about_a_box() -> None:
    truth = {
        "boxes": torch.tensor([[0.0, 0, 100, 100], [0, 0, 300, 300]]),
        "labels": torch.tensor([0, 0]),
        "iscrowd": torch.tensor([0, 1]),
    }
    found = {"boxes": torch.tensor([[0.0, 0, 40, 100]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    result = tide(make_scene([found], [truth]))
    assert result.ap50 == 0
    assert result.counts == {"Cls": 0, "Loc": 1, "Both": 0, "Dupe": 0, "Bkg": 0, "Miss": 0}
    assert kinds(result) == pytest.approx({"Loc": 1, "FN": 1})


def crowded(seed: int) -> tuple[list[Any], list[Any]]:
    """60 images of 4 classes on a small plane, so that boxes meet; 300 boxes, a tenth of them crowds, and 600 detections."""
    g = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(60):
        corner, side = g.integers(0, 120, (5, 2)), g.integers(20, 80, (5, 2))
        boxes, labels = np.concatenate([corner, corner + side], 1), g.integers(0, 4, 5)
        near = np.repeat(boxes, 2, 0) + g.integers(-20, 20, (10, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 4)
        said = np.where(g.random(10) < 0.3, g.integers(0, 4, 10), np.repeat(labels, 2))
        truths.append(
            {
                "boxes": torch.tensor(boxes).float(),
                "labels": torch.tensor(labels),
                "iscrowd": torch.tensor((g.random(5) < 0.1).astype(int)),
            }
        )
        detections.append(
            {"boxes": torch.tensor(near).float(), "labels": torch.tensor(said), "scores": torch.tensor(g.random(10))}
        )
    return detections, truths


KINDS = ("AP50", *ERRORS, *SPECIAL)
# tidecv 1.0.1 (TIDE.BOX, crowds as ignore regions), in points; it rounds recalls another way, which moves AP50 by up to .011 here
TOOLBOX = {
    0: (11.648, 4.197, 49.181, 1.841, 0.146, 1.052, 0.710, 30.678, 15.654),
    1: (12.622, 3.428, 51.031, 2.041, 0.364, 0.260, 0.527, 32.922, 15.009),
}


@pytest.mark.parametrize("seed", TOOLBOX)
def test_the_numbers_of_the_authors_toolbox(seed: int) -> None:
    result = tide(make_scene(*crowded(seed)))
    found = {"AP50": 100 * result.ap50} | {kind: 100 * value for kind, value in result.dap.items()}
    assert found == pytest.approx(dict(zip(KINDS, TOOLBOX[seed])), abs=0.05)


def test_which_kind_goes_first() -> None:
    # own class at IoU .3, other class at .7: Loc before Cls
    both = [(0, 0, 30, 100, 0), (0, 0, 70, 100, 1)]
    assert tide(scene([(0, 0, 100, 100, 0, 0.9)], both)).counts["Loc"] == 1
    # a second detection of its own box, on another class's too: Cls before Dupe
    crossed = [(0, 0, 100, 100, 0), (0, 0, 90, 100, 1)]
    result = tide(scene([(0, 0, 100, 100, 0, 0.9), (0, 0, 99, 100, 0, 0.8)], crossed))
    assert result.counts["Cls"] == 1
    assert result.counts["Dupe"] == 0


@pytest.mark.parametrize(
    ("found", "kind", "missed"),
    [
        ([(0, 0, 100, 100, 0, 0.9), (0, 0, 50, 100, 0, 0.8)], "Loc", 1),  # a second one on a box, at .5
        ([(0, 0, 10, 100, 0, 0.8)], "Loc", 1),  # on a box of its class, at .1
        ([(400, 0, 410, 100, 0, 0.8)], "Bkg", 2),  # on a box of the other class, at .1
    ],
)
def test_kinds_at_the_thresholds_themselves(found: list[tuple[float, ...]], kind: str, missed: int) -> None:
    # as in tidecv 1.0.1
    counts = tide(scene(found, [TRUTH[0], TRUTH[2]])).counts
    assert counts == {**dict.fromkeys(ERRORS, 0), kind: 1, "Miss": missed}


def test_crowds_and_classes_without_a_box_are_no_errors() -> None:
    truth = {
        "boxes": torch.tensor([[0.0, 0, 100, 100], [200, 0, 400, 200]]),
        "labels": torch.tensor([0, 0]),
        "iscrowd": torch.tensor([0, 1]),
    }
    found = {
        "boxes": torch.tensor([[0.0, 0, 100, 100], [210, 10, 230, 30], [240, 10, 260, 30], [0, 0, 100, 100]]),
        "labels": torch.tensor([0, 0, 0, 2]),
        "scores": torch.tensor([0.5, 0.9, 0.8, 0.9]),
    }
    result = tide(make_scene([found], [truth]))
    assert result.ap50 == pytest.approx(1)
    assert set(result.counts.values()) == {0}


def test_bad_input() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    with pytest.raises(InputError, match="at least one box"):
        tide(make_scene([nothing], [nothing]))
    with pytest.raises(ValueError, match="0 < t_b < t_f <= 1"):
        tide(scene(PERFECT), t_f=0.1, t_b=0.5)
    none = tide(scene([]))
    assert none.ap50 == 0
    assert kinds(none) == pytest.approx({"Miss": 1, "FN": 1})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_mending_never_costs_and_ap50_is_the_score(seed: int) -> None:
    g = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(4):
        parts = []
        for count in g.integers(1, 7, 2):
            corner = g.integers(0, 60, (count, 2))
            placed = torch.tensor(np.concatenate([corner, corner + g.integers(10, 60, (count, 2))], 1)).float()
            parts.append({"boxes": placed, "labels": torch.tensor(g.integers(0, 3, count))})
        truths.append(parts[0])
        detections.append({**parts[1], "scores": torch.tensor(g.random(len(parts[1]["labels"]))).float()})
    result = tide(make_scene(detections, truths))
    assert result.ap50 == pytest.approx(score(detections, truths, ("a", "b", "c")).ap50, abs=1e-6)
    assert min(result.dap.values()) >= -1e-12
    assert result.ap50 + max(result.dap.values()) <= 1 + 1e-12
