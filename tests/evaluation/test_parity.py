"""Differences of outputs, and of detections that have to be found in each other first."""

from __future__ import annotations

import pytest
import torch

from detkd.evaluation.parity import ATOL, BOX, RTOL, Difference, Matches, Parity, Rows, pair
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


def test_pairs_are_the_nearest_that_are_free() -> None:
    apart = torch.tensor([[torch.inf, 0.5, 0.25], [torch.inf, 2.0, 0.125], [torch.inf, torch.inf, torch.inf]])
    assert pair(apart) == ([0, 1], [2, 1])
    assert pair(torch.zeros(2, 0)) == pair(torch.zeros(0, 2)) == ([], [])


def test_rows_are_paired_by_place_and_those_of_zeros_are_none() -> None:
    of = Rows()
    expected = torch.tensor([[0.0, 0, 8, 8], [10, 10, 20, 20], [30, 30, 40, 40], [0, 0, 0, 0]])
    found = torch.tensor([[10.0, 10, 20, 20], [0, 0, 8, 8 + BOX / 2], [50, 50, 60, 60], [0, 0, 0, 0]])
    own, other = of.add(expected, found)
    assert (own.tolist(), other.tolist()) == ([0, 1], [1, 0])
    assert (of.matched, of.expected_alone, of.found_alone) == (2, 1, 1)
    of.add(torch.zeros(3, 4), torch.zeros(3, 4))
    assert of == Rows(2, 1, 1)


def rows_of(*scores: float) -> dict[str, torch.Tensor]:
    """Two proposals and their scores of one class."""
    places = torch.tensor([[[0.0, 0, 8, 8], [10, 10, 20, 20]]])
    return {"raw_proposals": places, "scores": torch.tensor(scores)[None, :, None]}


def test_a_box_head_that_says_something_else_is_found_without_a_detection() -> None:
    swapped = {name: value.flip(1) for name, value in rows_of(0.25, 0.75).items()}
    well, ill = Parity(), Parity()
    well.add_rows(rows_of(0.25, 0.75), swapped, "raw_proposals")
    assert (well.failures(), well.passed()) == ([], True)
    assert "2 proposals matched, 0 alone" in well.line()
    ill.add_rows(rows_of(0.25, 0.75), rows_of(0.25, 0.5), "raw_proposals")
    assert [f.split(" ")[0] for f in ill.failures()] == ["scores"]
    assert ill.passed() is False


def test_proposals_of_which_most_are_elsewhere() -> None:
    of, moved = Parity(), rows_of(0.25, 0.75)
    moved["raw_proposals"] = moved["raw_proposals"] + 1
    of.add_rows(rows_of(0.25, 0.75), moved, "raw_proposals")
    assert of.failures() == ["4 of 4 proposals are on one side alone"]


@pytest.mark.parametrize(("elsewhere", "failures"), [(1, []), (2, ["4 of 40 proposals are on one side alone"])])
def test_a_few_proposals_may_be_others(elsewhere: int, failures: list[str]) -> None:
    of, corner = Parity(), 10 * torch.arange(20.0)[:, None]
    expected = {"raw_proposals": torch.cat([corner, corner, corner + 8, corner + 8], dim=1)[None]}
    found = {"raw_proposals": expected["raw_proposals"].clone()}
    found["raw_proposals"][0, :elsewhere] += 500
    of.add_rows(expected, found, "raw_proposals")
    assert of.failures() == failures


def test_nothing_to_compare_is_no_success() -> None:
    of = Parity()
    assert of.passed() is None
    of.add({"raw_obj": torch.ones(2)}, {"raw_obj": torch.ones(2)}, [detection()], [detection()])
    of.add_rows({"raw_proposals": torch.zeros(1, 2, 4)}, {"raw_proposals": torch.zeros(1, 2, 4)}, "raw_proposals")
    assert (of.passed(), of.detections.by_image) == (None, [0])
    of.add({}, {}, [detection(FIRST)], [detection(FIRST)])
    assert (of.passed(), of.detections.by_image) == (True, [0, 1])


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
