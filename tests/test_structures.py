"""The types that cross package borders."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from detkd.structures import DetectorSpec, Prediction, Target, join_targets, pseudo_labels, with_boxes


def targets() -> list[Target]:
    rows = [[[0.0, 1, 2, 3], [4, 5, 6, 7]], [], [[8, 9, 10, 11]]]
    labels = [[1, 0], [], [2]]
    return [
        {"boxes": torch.tensor(r, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(n, dtype=torch.int64)}
        for r, n in zip(rows, labels)
    ]


def test_join_targets() -> None:
    image, boxes, labels = join_targets(targets())
    assert image.tolist() == [0, 0, 2]
    assert image.dtype == torch.int64
    assert boxes[:, 0].tolist() == [0, 4, 8]
    assert labels.tolist() == [1, 0, 2]


def test_join_without_any_box() -> None:
    image, boxes, labels = join_targets([targets()[1], targets()[1]])
    assert image.shape == labels.shape == (0,)
    assert boxes.shape == (0, 4)


def test_with_boxes_is_the_inverse_of_join() -> None:
    given = targets()
    _, boxes, _ = join_targets(given)
    moved = with_boxes(given, boxes + 1)
    assert [len(t["boxes"]) for t in moved] == [2, 0, 1]
    for before, after in zip(given, moved):
        assert torch.equal(after["boxes"], before["boxes"] + 1)
        assert torch.equal(after["labels"], before["labels"])


def test_spec_survives_json() -> None:
    spec = DetectorSpec(("cat", "dog"), (48, 64), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), resize="letterbox")
    assert DetectorSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert DetectorSpec.from_dict({"classes": ["cat"], "image_size": [8, 8]}) == DetectorSpec(("cat",), (8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "at least one class"),
        ({"classes": ("a", "b", "a")}, r"\['a'\] more than once"),
        ({"image_size": (0, 8)}, r"positive pixels, got \(0, 8\)"),
        ({"image_size": (8, 8, 8)}, "height, width"),
        ({"resize": "crop"}, "'stretch' or 'letterbox', got 'crop'"),
    ],
)
def test_spec_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorSpec(**({"classes": ("a",), "image_size": (8, 8)} | changes))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ["a"], "image_size": [8, 8], "colour": "BGR"}, r"got also \['colour'\]"),
        ({"classes": ["a"]}, r"the keys \['image_size'\]"),
    ],
)
def test_spec_of_a_dict_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorSpec.from_dict(values)


def prediction() -> Prediction:
    generator = torch.Generator().manual_seed(0)
    raw = {"box": torch.rand(3, 10, 4, generator=generator), "cls": torch.rand(3, 10, 2, generator=generator)}
    state = {"deep": {"logits": torch.arange(3)}, "lists": ["a", "b", "c"], "number": 7}
    return Prediction(raw, ((2, 2, 2), (1, 2, 1)), (8, 16), {"p3": torch.rand(3, 1, 2, 2)}, (16, 32), state)


def test_levels_split_the_sites() -> None:
    p = prediction()
    fine, coarse = p.levels("box")
    assert fine.shape == (3, 8, 4)
    assert coarse.shape == (3, 2, 4)
    assert torch.equal(torch.cat([fine, coarse], 1), p.raw["box"])


def test_image_of_a_prediction() -> None:
    p = prediction()
    assert len(p) == 3
    one = p.image(1)
    assert len(one) == 1
    assert torch.equal(one.raw["cls"], p.raw["cls"][1:2])
    assert one.raw["cls"].data_ptr() == p.raw["cls"][1:2].data_ptr()
    assert torch.equal(one.features["p3"], p.features["p3"][1:2])
    assert one.state["deep"]["logits"].tolist() == [1]
    assert one.state["lists"] == ["b"]
    assert one.state["number"] == 7
    assert (one.sizes, one.strides, one.image_size) == (p.sizes, p.strides, p.image_size)


def test_pseudo_labels_drop_weak_and_flat_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 5.0, 9.0]])
    none: Any = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    found: Any = {"boxes": boxes, "labels": torch.tensor([2, 1, 0]), "scores": torch.tensor([0.9, 0.3, 0.8])}
    first, second = pseudo_labels([found, none], 0.3)
    assert first["labels"].tolist() == [2]
    assert first.keys() == {"boxes", "labels"}
    assert second["boxes"].shape == (0, 4)
