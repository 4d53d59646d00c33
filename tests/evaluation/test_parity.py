"""Differences of outputs, and of detections that have to be found in each other first."""

from __future__ import annotations

import pytest
import torch

from detkd.evaluation.parity import ATOL, BOX, RTOL, Difference, Matches, Parity
from detkd.structures import Detection


def detection(*rows: tuple[float, float, float, float, int, float]) -> Detection:
    """x1, y1, x2, y2, label, score a row."""
    values = torch.tensor(rows).reshape(-1, 6)
    return {"boxes": values[:, :4], "labels": values[:, 4].long(), "scores": values[:, 5]}


FIRST = (0.0, 0.0, 10.0, 10.0, 1, 0.75)
SECOND = (20.0, 20.0, 40.0, 40.0, 2, 0.5)


def test_difference_is_relative_to_what_is_expected() -> None:
    of = Difference()
    of.add(torch.tensor([100.0, 0.0]), torch.tensor([100.0625, 0.0]))
    assert of.absolute == 0.0625
    assert of.over_tolerance == pytest.approx(0.0625 / (ATOL + RTOL * 100))
    of.add(torch.tensor([0.0]), torch.tensor([0.00025]))
    assert of.absolute == 0.0625
    assert of.over_tolerance == pytest.approx(2.5, rel=1e-4)
    of.add(torch.empty(0), torch.empty(0))


@pytest.mark.parametrize(
    ("expected", "found", "apart"), [(1.0, torch.nan, True), (torch.inf, torch.inf, False), (torch.inf, 1.0, True)]
)
def test_values_that_are_not_finite(expected: float, found: float, apart: bool) -> None:
    of = Difference()
    of.add(torch.tensor([expected]), torch.tensor([found]))
    assert (of.over_tolerance > 1) == apart


def test_another_shape() -> None:
    with pytest.raises(ValueError, match=r"expected the shape \(2,\), got \(3,\)"):
        Difference().add(torch.zeros(2), torch.zeros(3))


def test_detections_are_matched_in_any_order() -> None:
    of = Matches()
    moved = (0.0, 0.0, 10.0, 10.0 + 2**-7, 1, 0.75 - 2**-10)
    of.add(detection(FIRST, SECOND), detection(SECOND, moved))
    assert (of.matched, of.expected_alone, of.found_alone) == (2, 0, 0)
    assert of.box == 2**-7
    assert of.score == 2**-10


def test_one_detection_is_matched_once_and_of_another_label_never() -> None:
    of = Matches()
    of.add(detection(FIRST, FIRST, SECOND), detection(FIRST, (*SECOND[:4], 1, 0.5)))
    assert (of.matched, of.expected_alone, of.found_alone) == (1, 2, 1)
    of.add(detection(), detection(FIRST))
    of.add(detection(FIRST), detection())
    of.add(detection(), detection())
    assert (of.matched, of.expected_alone, of.found_alone) == (1, 3, 2)


def test_of_equal_boxes_the_nearer_score_is_the_match() -> None:
    of = Matches()
    twin = (*FIRST[:5], 0.25)
    of.add(detection(FIRST, twin), detection(twin, FIRST))
    assert (of.matched, of.score) == (2, 0.0)


def test_boxes_without_area_are_matched_by_their_place() -> None:
    of, flat = Matches(), (5.0, 5.0, 5.0, 9.0, 1, 0.5)
    of.add(detection(flat), detection(flat))
    assert (of.matched, of.found_alone) == (1, 0)


def test_failures_name_what_is_beyond() -> None:
    well, ill = Parity(), Parity()
    well.add({"raw": torch.ones(2)}, {"raw": torch.ones(2), "more": torch.ones(1)}, [detection(FIRST)], [detection(FIRST)])
    assert well.failures() == []
    assert "1 detections matched, 0 alone" in well.line()
    far = (*FIRST[:3], 10.1, 1, 0.7)
    ill.add(
        {"raw": torch.ones(2), "boxes": torch.zeros(1)},
        {"raw": torch.full((2,), 1.01), "boxes": torch.full((1,), BOX / 2)},
        [detection(FIRST, SECOND)],
        [detection(far)],
    )
    failures = ill.failures()
    assert [f.split(" ")[0] for f in failures] == ["raw", "1", "matched", "matched"]
    assert "1 of 3 detections are on one side alone" in failures
    assert ill.to_dict()["detections"]["matched"] == 1
