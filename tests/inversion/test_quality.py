from __future__ import annotations

from typing import Any

import pytest
import torch
from detkd_tests_doubles import TinyDetector

from detkd.errors import InputError
from detkd.inversion.quality import VIEWS, Acceptance, Candidate, Judge, best_matches, choose
from detkd.structures import Detection, Target


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def detection(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detection:
    return {**target(boxes, labels), "scores": torch.tensor(scores)}


def matches(found: Detection, truth: Target) -> list[list[float]]:
    return [[round(v, 6) for v in values.tolist()] for values in best_matches(found, truth)]


def test_the_best_detection_of_the_right_class_counts() -> None:
    truth = target([[0, 0, 10, 10]], [2])
    found = detection(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [0, 0, 4, 10]],  # IoU 1, .8, .6, .4
        [1, 2, 2, 2],
        [0.99, 0.3, 0.7, 0.95],
    )
    assert matches(found, truth) == [[0.7], [0.8]]


def test_every_box_has_its_own_match() -> None:
    truth = target([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1])
    assert matches(detection([[0, 0, 10, 10]], [0], [0.9]), truth) == [[0.9, 0.0], [1.0, 0.0]]


def test_nothing_found_and_nothing_to_find() -> None:
    nothing = detection([], [], [])
    assert matches(nothing, target([[0, 0, 10, 10]], [0])) == [[0.0], [0.0]]
    assert matches(nothing, target([], [])) == [[], []]
    assert matches(detection([[0, 0, 1, 1]], [0], [0.5]), target([], [])) == [[], []]


class Bright(TinyDetector):
    """Sees an object of class 0 around the bright pixels, of their mean value as score."""

    def decode(self, prediction: Any) -> list[Detection]:
        found = []
        for image in prediction.state["images"]:
            ys, xs = (image.mean(0) > 0.7).nonzero(as_tuple=True)
            boxes = [[float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1]] if len(xs) else []
            score = [float(image.mean(0)[ys, xs].mean())] if len(xs) else []
            found.append(detection(boxes, [0] * len(boxes), score))
        return found

    def forward(self, images: torch.Tensor) -> Any:
        prediction = super().forward(images)
        prediction.state["images"] = images
        return prediction


def square(x: int, y: int, side: int = 16, size: int = 64) -> tuple[torch.Tensor, Target]:
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    image[..., y : y + side, x : x + side] = 250
    return image, target([[x, y, x + side, y + side]], [0])


def test_an_object_that_every_view_shows_has_full_agreement() -> None:
    image, truth = square(10, 20)
    (record,) = Judge(Bright())(image, [truth])
    assert record == {"teacher_score": round(250 / 255, 4), "teacher_iou": 1.0, "agreement": 1.0}


def test_views_move_boxes_as_they_move_pixels() -> None:
    image, truth = square(10, 20)
    for view in VIEWS:
        (found,) = Bright().decode(Bright()(view.change(image.float() / 255)))
        moved = {**found, "boxes": view.undo(found["boxes"], (64, 64))}
        assert float(best_matches(moved, truth)[1]) > 0.8


def test_an_object_that_no_view_shows_has_none() -> None:
    image, truth = square(10, 20)
    image[image > 0] = 180  # 180 / 255 is above the threshold, 0.8 of it is not: one of four views loses the object
    (record,) = Judge(Bright())(image, [truth])
    assert record["agreement"] == 0.75
    (record,) = Judge(Bright())(image * 0, [truth])
    assert record == {"teacher_score": 0.0, "teacher_iou": 0.0, "agreement": 0.0}


def test_a_verifier_is_asked_by_name() -> None:
    image, truth = square(10, 20)
    same = Judge(Bright(("cat", "dog")), Bright(("cat", "dog")), agreement=False)
    other = Judge(Bright(("cat", "dog")), Bright(("dog", "kite", "cat")), agreement=False)  # calls what it sees a dog
    assert same(image, [truth])[0]["verifier_score"] == pytest.approx(250 / 255, abs=1e-4)
    assert other(image, [truth])[0] == same(image, [truth])[0] | {"verifier_score": 0.0, "verifier_iou": 0.0}
    with pytest.raises(InputError, match=r"verifier: expected.*without \['dog'\]"):
        Judge(Bright(("cat", "dog")), Bright(("cat", "kite")))


def test_spellings_of_one_class_are_one() -> None:
    image, truth = square(10, 20)
    judge = Judge(Bright(("sofa",)), Bright(("couch",)), agreement=False)
    assert judge(image, [truth])[0]["verifier_iou"] == 1.0


def test_a_batch_is_judged_as_its_images() -> None:
    (a, of_a), (b, of_b) = square(10, 20), square(30, 5, 24)
    judge = Judge(Bright())
    assert judge(torch.cat([a, b]), [of_a, of_b]) == judge(a, [of_a]) + judge(b, [of_b])


def test_thresholds() -> None:
    record = {"teacher_score": 0.5, "teacher_iou": 0.6, "agreement": 0.75}
    assert Acceptance().accepts(record)
    assert Acceptance(teacher_score=0.5, agreement=0.7).accepts(record)
    assert not Acceptance(teacher_score=0.5, agreement=0.8).accepts(record)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts"),
        ({"rejected": "burn"}, "rejected"),
        ({"teacher_iou": 1.5}, r"teacher_iou.*1\.5"),
        ({"agreement": float("nan")}, "agreement"),
    ],
)
def test_senseless_thresholds_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Acceptance(**options)


def test_accepted_images_come_first_and_the_best_of_the_others_fill_up() -> None:
    def made(number: int, accepted: bool, score: float) -> Candidate:
        return Candidate(torch.full((1,), number), target([], []), {"accepted": accepted, "teacher_score": score})

    pool = [
        made(0, False, 0.3),
        made(1, True, 0.9),
        made(2, False, 0.4),
        made(3, False, 0.1),
        made(4, True, 0.8),
        made(5, True, 1.0),
    ]
    assert [int(c.image) for c in choose(pool, 2)] == [1, 4]
    assert [int(c.image) for c in choose(pool, 4)] == [1, 2, 4, 5]
    assert [int(c.image) for c in choose(pool, 5)] == [0, 1, 2, 4, 5]
