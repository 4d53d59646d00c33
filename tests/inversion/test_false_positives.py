from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkd.boxes import area_xyxy, iou_xyxy
from detkd.errors import InputError
from detkd.inversion.false_positives import FalsePositives
from detkd.structures import Detection, Target

SIZE = (80, 100)  # height, width


def target(*boxes: list[float], labels: list[int] | None = None) -> Target:
    return {
        "boxes": torch.tensor(list(boxes)).reshape(-1, 4),
        "labels": torch.tensor([0] * len(boxes) if labels is None else labels, dtype=torch.int64),
    }


def detection(*rows: tuple[list[float], float, int]) -> Detection:
    """(box, score, label) each."""
    return {
        "boxes": torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        "labels": torch.tensor([label for _, _, label in rows], dtype=torch.int64),
        "scores": torch.tensor([score for _, score, _ in rows]),
    }


def sample(of: Target, found: Detection, **options: Any) -> Target:
    (result,) = FalsePositives(**options)([of], [found], SIZE)
    return result


LEFT, RIGHT = [10.0, 10, 40, 40], [60.0, 10, 90, 40]
NEAR_LEFT = [10.0, 10, 40, 25]  # IoU .5 with LEFT
ELSEWHERE = [50.0, 50, 80, 75]


def test_a_confident_detection_apart_from_the_targets_becomes_one() -> None:
    result = sample(target(LEFT, labels=[4]), detection((RIGHT, 0.9, 2)))
    assert result["boxes"].tolist() == [LEFT, RIGHT]
    assert result["labels"].tolist() == [4, 2]
    assert result["boxes"].dtype == torch.float32
    assert result["labels"].dtype == torch.int64


@pytest.mark.parametrize(("score", "added"), [(0.19, 0), (0.2, 0), (0.21, 1)])
def test_the_score_must_be_above(score: float, added: int) -> None:
    assert len(sample(target(LEFT), detection((RIGHT, score, 0)))["boxes"]) == 1 + added


# LEFT is 900 px^2; these overlap it by a part of its height, so by this IoU
@pytest.mark.parametrize(("height", "added"), [(10.0, 1), (10.5, 0), (30.0, 0)])
def test_the_iou_with_every_target_must_be_below(height: float, added: int) -> None:
    part = [10.0, 10, 40, 10 + height]
    assert len(sample(target(RIGHT, LEFT), detection((part, 0.9, 0)))["boxes"]) == 2 + added


def test_an_iou_equal_to_the_threshold_is_not_below_it() -> None:
    assert len(sample(target(LEFT), detection((NEAR_LEFT, 0.9, 0)), iou=0.5)["boxes"]) == 1
    assert len(sample(target(LEFT), detection((NEAR_LEFT, 0.9, 0)), iou=0.51)["boxes"]) == 2
    assert len(sample(target(ELSEWHERE), detection((LEFT, 0.9, 0), (NEAR_LEFT, 0.8, 0)), iou=0.5)["boxes"]) == 2


# the image has 8000 px^2
@pytest.mark.parametrize(
    ("box", "added"),
    [
        ([0.0, 0, 10, 8], 0),  # .01 exactly
        ([0.0, 0, 10, 9], 1),
        ([0.0, 0, 100, 68], 0),  # .85 exactly
        ([0.0, 0, 100, 67], 1),
        ([5.0, 5, 5, 60], 0),
    ],
)
def test_the_area_must_lie_between(box: list[float], added: int) -> None:
    assert len(sample(target(), detection((box, 0.9, 0)))["boxes"]) == added


def test_a_detection_is_clipped_before_it_is_measured() -> None:
    assert sample(target(), detection(([80.0, 70, 140, 110], 0.9, 0)))["boxes"].tolist() == [[80, 70, 100, 80]]
    assert len(sample(target(), detection(([95.0, 70, 140, 110], 0.9, 0)))["boxes"]) == 0  # 50 px^2 inside


def test_those_added_at_once_do_not_overlap_and_the_best_comes_first() -> None:
    found = detection((NEAR_LEFT, 0.6, 1), (LEFT, 0.8, 0), (RIGHT, 0.7, 1))
    result = sample(target(ELSEWHERE, labels=[3]), found)
    assert result["boxes"].tolist() == [ELSEWHERE, LEFT, RIGHT]
    assert result["labels"].tolist() == [3, 0, 1]


def test_a_detection_that_was_not_added_hinders_none() -> None:
    # the middle one overlaps the first, the last one overlaps the middle one alone
    chain = [[0.0, 0, 20, 20], [10.0, 0, 30, 20], [20.0, 0, 40, 20]]
    found = detection(*((box, 0.9 - i / 10, 0) for i, box in enumerate(chain)))
    assert sample(target(), found, iou=0.3)["boxes"].tolist() == [chain[0], chain[2]]
    assert len(sample(target(), found, iou=0.34)["boxes"]) == 3


def test_most_counts_the_targets_that_are_there() -> None:
    grid = [[20.0 * x, 20.0 * y, 20 * x + 15, 20 * y + 15] for y in range(4) for x in range(5)]
    found = detection(*((box, 0.9 - i / 100, i) for i, box in enumerate(grid[2:])))
    result = sample(target(*grid[:2], labels=[0, 1]), found, most=5)
    assert result["boxes"].tolist() == grid[:5]
    assert result["labels"].tolist() == [0, 1, 0, 1, 2]
    assert sample(target(*grid[:8]), found, most=5)["boxes"].tolist() == grid[:8]
    gone = [0.0, 0, 0, 0]  # no object: it takes no place
    assert sample(target(grid[0], gone), found, most=3)["boxes"].tolist() == [grid[0], gone, *grid[2:4]]


def test_nothing_detected_leaves_targets_as_they_are() -> None:
    before = target(LEFT, RIGHT, labels=[5, 6])
    for remove in (None, 0.35):
        after = sample(before, detection(), remove=remove)
        assert torch.equal(after["boxes"], before["boxes"])
        assert torch.equal(after["labels"], before["labels"])


def test_an_image_without_targets_or_without_anything() -> None:
    assert sample(target(), detection((LEFT, 0.9, 7)), remove=0.35)["labels"].tolist() == [7]
    empty = sample(target(), detection(), remove=0.35)
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].dtype == torch.int64
    assert FalsePositives()([], [], SIZE) == []


def test_a_target_without_area_is_no_object() -> None:
    gone = [20.0, 20, 20, 20]
    assert sample(target(gone), detection((LEFT, 0.9, 0)))["boxes"].tolist() == [gone, LEFT]
    assert sample(target(gone, RIGHT), detection((LEFT, 0.9, 0)), remove=0.35)["boxes"].tolist() == [RIGHT, LEFT]


def test_remove_takes_out_what_is_not_seen() -> None:
    seen = detection((NEAR_LEFT, 0.06, 9))  # of any class and score
    assert sample(target(RIGHT, LEFT, labels=[1, 2]), seen, remove=0.5)["labels"].tolist() == [2]
    assert sample(target(RIGHT, LEFT), seen)["boxes"].tolist() == [RIGHT, LEFT]


def test_remove_keeps_the_best_of_all() -> None:
    seen = detection((NEAR_LEFT, 0.06, 0))
    assert sample(target(RIGHT, LEFT, ELSEWHERE), seen, remove=0.6)["boxes"].tolist() == [LEFT]
    nowhere = detection(([0.0, 70, 5, 75], 0.06, 0))
    assert sample(target(RIGHT, LEFT), nowhere, remove=0.6)["boxes"].tolist() == [RIGHT]
    assert sample(target([9.0, 9, 9, 9], LEFT), nowhere, remove=0.6)["boxes"].tolist() == [LEFT]


def test_a_place_that_was_emptied_is_free() -> None:
    found = detection((NEAR_LEFT, 0.9, 3), (RIGHT, 0.8, 1))
    assert sample(target(RIGHT, LEFT, labels=[1, 2]), found, remove=0.6)["labels"].tolist() == [1, 3]
    assert sample(target(RIGHT, LEFT, labels=[1, 2]), found)["labels"].tolist() == [1, 2]


def random_scene(seed: int, targets: int, detections: int) -> tuple[Target, Detection]:
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> torch.Tensor:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([90.0, 70])
        return torch.cat([corner, corner + 60 * torch.rand(count, 2, generator=generator) ** 2], 1)

    scores = torch.rand(detections, generator=generator).sort(descending=True).values
    labels = torch.randint(9, (targets + detections,), generator=generator)
    return (
        {"boxes": boxes(targets), "labels": labels[:targets]},
        {"boxes": boxes(detections), "labels": labels[targets:], "scores": scores},
    )


@pytest.mark.parametrize("remove", [None, 0.35])
def test_images_of_a_batch_know_nothing_of_each_other(remove: float | None) -> None:
    scenes = [random_scene(s, t, d) for s, t, d in ((1, 2, 60), (2, 0, 40), (3, 5, 0), (4, 1, 90))]
    sampler = FalsePositives(remove=remove)
    together = sampler([t for t, _ in scenes], [d for _, d in scenes], SIZE)
    assert sum(len(t["boxes"]) for t in together) > 20
    for (of, found), result in zip(scenes, together):
        (alone,) = sampler([of], [found], SIZE)
        assert torch.equal(alone["boxes"], result["boxes"])
        assert torch.equal(alone["labels"], result["labels"])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    targets=st.integers(0, 8),
    detections=st.integers(0, 40),
    iou=st.floats(0.05, 1.0),
    most=st.integers(1, 12),
)
def test_targets_stay_and_those_added_keep_the_rules(seed: int, targets: int, detections: int, iou: float, most: int) -> None:
    before, found = random_scene(seed, targets, detections)
    after = sample(before, found, iou=iou, most=most)
    assert torch.equal(after["boxes"][:targets], before["boxes"])
    assert torch.equal(after["labels"][:targets], before["labels"])
    added = after["boxes"][targets:]
    assert len(added) <= max(0, most - int((area_xyxy(before["boxes"]) > 0).sum()))
    if len(added):
        overlap = iou_xyxy(added, after["boxes"]) - torch.eye(len(after["boxes"]))[targets:]
        assert overlap.max() < iou + 1e-6
        relative = area_xyxy(added) / (SIZE[0] * SIZE[1])
        assert ((relative > 0.01) & (relative < 0.85)).all()
    # what was added is a target now, so a second time adds nothing
    again = sample(after, found, iou=iou, most=most)
    assert torch.equal(again["boxes"], after["boxes"])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), targets=st.integers(1, 6), detections=st.integers(0, 20), remove=st.floats(0.05, 1.0))
def test_remove_leaves_a_part_of_the_targets_never_none(seed: int, targets: int, detections: int, remove: float) -> None:
    before, found = random_scene(seed, targets, detections)
    after = sample(before, found, score=0.99, most=1, remove=remove)
    kept = [row for row in before["boxes"].tolist() if row in after["boxes"].tolist()]
    assert 1 <= len(kept) <= targets
    assert after["boxes"].tolist()[: len(kept)] == kept  # in their order


def test_no_gradient_and_no_change_in_place() -> None:
    before, found = random_scene(0, 3, 30)
    kept = before["boxes"].clone(), found["boxes"].clone(), found["scores"].clone()
    found["boxes"].requires_grad_(True)
    assert not sample(before, found)["boxes"].requires_grad
    assert torch.equal(before["boxes"], kept[0])
    assert torch.equal(found["boxes"], kept[1])
    assert torch.equal(found["scores"], kept[2])


def test_half_precision_detections_give_targets_of_their_own_type() -> None:
    found = detection((RIGHT, 0.9, 2))
    found["boxes"], found["scores"] = found["boxes"].half(), found["scores"].half()
    result = sample(target(LEFT), found)
    assert result["boxes"].dtype == torch.float32
    assert result["boxes"].tolist() == [LEFT, RIGHT]


def test_targets_and_detections_of_as_many_images() -> None:
    with pytest.raises(ValueError, match="detections for 2 images, got them for 1"):
        FalsePositives()([target(), target()], [detection()], SIZE)


@pytest.mark.parametrize(
    ("options", "iterations", "when"),
    [
        ({"every": 100}, 2500, list(range(800, 2500, 100))),
        ({"every": 100}, 2501, list(range(900, 2501, 100))),  # .32 x 2501 is a little more than 800
        ({"every": 100}, 150, [100]),
        ({"every": 100}, 100, []),
        ({}, 75, [25, 50]),
        ({}, 25, []),
        ({}, 1, []),
        ({"every": 10, "start": 0.0}, 40, [10, 20, 30]),
        ({"every": 1, "start": 0.07}, 100, list(range(7, 100))),
        ({"every": 1, "start": 0.9}, 2, []),
    ],
)
def test_when_it_is_due(options: dict[str, Any], iterations: int, when: list[int]) -> None:
    sampler = FalsePositives(**options)
    assert [i for i in range(iterations + 200) if sampler.due(i, iterations)] == when
    assert list(sampler.times(iterations)) == when
    if when:
        sampler.check(iterations)
    else:
        with pytest.raises(InputError, match=rf"sampling\.every.* {iterations}, .*sampling=none"):
            sampler.check(iterations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"sampling\.every.*got 0"),
        ({"start": -0.1}, r"sampling\.start.*got -0\.1"),
        ({"start": 1.0}, r"sampling\.start.*got 1\.0"),
        ({"score": 1.0}, r"sampling\.score.*got 1\.0"),
        ({"score": float("nan")}, r"sampling\.score.*got nan"),
        ({"iou": 0.0}, r"sampling\.iou.*got 0\.0"),
        ({"iou": 1.1}, r"sampling\.iou.*got 1\.1"),
        ({"area": (0.5, 0.5)}, r"sampling\.area.*got \[0\.5, 0\.5\]"),
        ({"area": (0.1, 1.5)}, r"sampling\.area.*got \[0\.1, 1\.5\]"),
        ({"area": (0.1,)}, r"sampling\.area.*got \[0\.1\]"),
        ({"remove": 0.0}, r"sampling\.remove.*got 0\.0"),
        ({"most": 0}, r"sampling\.most.*got 0"),
    ],
)
def test_settings_that_add_nothing_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FalsePositives(**options)
