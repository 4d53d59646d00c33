from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from detkd.boxes import area_xyxy, iou_xyxy
from detkd.errors import InputError
from detkd.inversion.layout import UniformBoxes, labels_of
from detkd.structures import Target

NAMES = ["0", "1", "2", "3", "4", "5", "6"]


def draw(
    count: int = 400, names: Sequence[str] = NAMES, canvas: tuple[int, int] = (60, 100), seed: int = 0, **options: Any
) -> list[Target]:
    return UniformBoxes(**options)(count, names, canvas, torch.Generator().manual_seed(seed))


def test_one_box_an_image_inside_the_canvas_with_all_classes() -> None:
    targets = draw()
    assert len(targets) == 400
    boxes = torch.cat([t["boxes"] for t in targets])
    labels = torch.cat([t["labels"] for t in targets])
    assert boxes.shape == (400, 4)
    assert boxes.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(7))
    assert (area_xyxy(boxes) >= 1).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([100.0, 60, 100, 60])).all()


def test_inside_keeps_the_whole_box_and_its_size_uniform() -> None:
    boxes = torch.cat([t["boxes"] for t in draw(2000, inside=True)])
    extent = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([100.0, 60])
    assert extent.min() >= 0.1 - 1e-5
    assert extent.max() <= 0.75 + 1e-5
    torch.testing.assert_close(extent.mean(0), torch.full((2,), (0.1 + 0.75) / 2), atol=0.02, rtol=0)
    assert extent.std(0).tolist() == pytest.approx([0.65 / 12**0.5] * 2, abs=0.01)


def test_anywhere_clips_some_boxes_and_spreads_centres_to_the_edges() -> None:
    boxes = torch.cat([t["boxes"] for t in draw(2000)])
    limits = torch.tensor([0.0, 0, 100, 60])
    assert 0.3 < (boxes == limits).any(1).float().mean() < 0.95
    inside = torch.cat([t["boxes"] for t in draw(2000, inside=True)])
    assert (inside == limits).any(1).float().mean() < 0.01


def test_the_same_generator_draws_the_same_and_another_does_not() -> None:
    a, again, other = draw(4), draw(4), draw(4, seed=1)
    assert all(torch.equal(x["boxes"], y["boxes"]) and torch.equal(x["labels"], y["labels"]) for x, y in zip(a, again))
    assert not torch.equal(a[0]["boxes"], other[0]["boxes"])


def test_boxes_stay_what_they_were_before_there_were_distributions() -> None:
    first, second = draw(2, seed=5, boxes=[1, 3], size=[0.2, 0.6], inside=True, max_iou=0.05, ratio=2.0)
    boxes = [[61.4581, 24.1258, 86.5025, 57.9051], [55.5906, 1.4655, 80.2564, 17.4109], [4.3906, 12.9702, 55.7920, 48.3740]]
    torch.testing.assert_close(first["boxes"], torch.tensor(boxes), atol=1e-3, rtol=0)
    torch.testing.assert_close(second["boxes"], torch.tensor([[44.9357, 28.0098, 84.4722, 59.1249]]), atol=1e-3, rtol=0)
    assert (first["labels"].tolist(), second["labels"].tolist()) == ([3, 6, 5], [5])


def test_naming_all_classes_changes_no_draw() -> None:
    for a, b in zip(draw(20, boxes=(1, 3)), draw(20, boxes=(1, 3), classes=NAMES[::-1])):
        assert torch.equal(a["boxes"], b["boxes"])
        assert torch.equal(a["labels"], b["labels"])


def test_a_distribution_of_counts() -> None:
    small = {"size": (0.1, 0.12), "max_iou": 1.0}
    counts = Counter(len(t["boxes"]) for t in draw(600, boxes={1: 1, 4: 3}, **small))
    assert set(counts) == {1, 4}
    assert counts[4] / 600 == pytest.approx(0.75, abs=0.07)  # 4 standard deviations
    coco = [len(t["boxes"]) for t in draw(600, boxes="coco", **small)]
    assert (min(coco), max(coco)) == (1, 25)
    assert sum(coco) / 600 == pytest.approx(7.15, abs=1.1)
    assert {len(t["boxes"]) for t in draw(600, boxes="voc", **small)} <= {1, 2, 3, 4, 5, 6, 7, 8, 10}


def test_only_the_classes_that_are_asked_for() -> None:
    names = ["person", "car", "sofa", "dog"]
    targets = draw(200, names, boxes=(1, 2), classes=["dog", "couch", "sofa"])
    assert set(torch.cat([t["labels"] for t in targets]).tolist()) == {2, 3}
    assert targets[0]["labels"].dtype == torch.int64


def test_labels_of_names() -> None:
    assert labels_of(None, ["a", "b"]) == [0, 1]
    assert labels_of(["tvmonitor", "a"], ["tv", "x", "a"]) == [0, 2]
    assert labels_of(["sofa"], ["couch", "sofa"]) == [1]
    with pytest.raises(InputError, match=r"layout\.classes.*'class 19'\] and 10 more, got \['zebra', 'A'\]"):
        labels_of(["class 3", "zebra", "A"], [f"class {i}" for i in range(30)])
    with pytest.raises(InputError, match="at least one class"):
        labels_of(None, [])


def test_several_boxes_hardly_overlap() -> None:
    targets = draw(100, boxes=(1, 4), canvas=(80, 80), max_iou=0.1)
    counts = {len(t["boxes"]) for t in targets}
    assert counts == {1, 2, 3, 4}
    for target in targets:
        overlap = iou_xyxy(target["boxes"], target["boxes"]) - torch.eye(len(target["boxes"]))
        assert overlap.max() <= 0.1 + 1e-6
        assert len(target["labels"]) == len(target["boxes"])


def test_boxes_that_find_no_room_are_left_out() -> None:
    crowded = draw(5, canvas=(40, 40), boxes=(5, 5), size=(0.9, 1.0), max_iou=0.0, inside=True)
    roomy = draw(5, canvas=(40, 40), boxes=(5, 5), size=(0.1, 0.2), max_iou=0.0, inside=True)
    assert [len(t["boxes"]) for t in crowded] == [1] * 5
    assert [len(t["boxes"]) for t in roomy] == [5] * 5


def test_a_tiny_canvas_still_gives_a_box_of_a_square_pixel() -> None:
    for target in draw(20, canvas=(4, 4)):
        assert area_xyxy(target["boxes"]).item() >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": (0, 1)}, r"layout\.boxes.*\[0, 1\]"),
        ({"boxes": (3, 2)}, r"layout\.boxes.*\[3, 2\]"),
        ({"boxes": "cocoa"}, r"layout\.boxes.*'cocoa'"),
        ({"boxes": {0: 1}}, r"layout\.boxes.*got 0"),
        ({"boxes": 3}, r"layout\.boxes.*got 3"),
        ({"classes": []}, r"layout\.classes.*got \[\]"),
        ({"classes": "dog"}, r"layout\.classes.*got 'dog'"),
        ({"classes": [3]}, r"layout\.classes.*got \[3\]"),
        ({"max_iou": -0.1}, r"layout\.max_iou.*-0\.1"),
        ({"size": (0.2,)}, r"layout\.size.*\[0\.2\]"),
        ({"size": (0.0, 0.5)}, r"layout\.size.*\[0\.0, 0\.5\]"),
        ({"size": (0.6, 0.5)}, r"layout\.size.*\[0\.6, 0\.5\]"),
        ({"size": (0.5, 1.5)}, r"layout\.size.*\[0\.5, 1\.5\]"),
    ],
)
def test_settings_that_cannot_fit_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UniformBoxes(**options)
