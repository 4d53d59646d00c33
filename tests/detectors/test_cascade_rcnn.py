"""Cascade R-CNN: its stages, its ensemble and how its training boxes come about, against formulas written here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_align

from detkd.detectors.torchvision import CascadeRCNN
from detkd.errors import InputError
from detkd.structures import Target

SMALL: dict[str, Any] = {
    "classes": ("cat", "dog", "kite"),
    "image_size": (64, 96),
    "backbone": "resnet18",
    "channels": 16,
    "width": 0.125,
    "anchor_size": 8,
    "roi_width": 32,
    "rois": 32,
    "train_proposals": 40,
    "proposals": 24,
    "score_threshold": 0.001,
}
FACTORS = {
    "torchvision": [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)],
    "mmdetection": [
        (1 / 0.1, 1 / 0.1, 1 / 0.2, 1 / 0.2),
        (1 / 0.05,) * 2 + (1 / 0.1,) * 2,
        (1 / 0.033,) * 2 + (1 / 0.067,) * 2,
    ],
}


def build(**changes: Any) -> CascadeRCNN:
    torch.manual_seed(0)
    detector = CascadeRCNN(**(SMALL | changes))
    for name, module in detector.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("bbox_pred", "cls_score")):
            nn.init.normal_(module.weight, std=0.3)
    return detector.eval()


def image(count: int = 1) -> Tensor:
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def moved(boxes: Tensor, deltas: Tensor, factors: tuple[float, ...]) -> Tensor:
    """Fast R-CNN's box corrections, clipped to 64 x 96 px."""
    dx, dy, dw, dh = (deltas / deltas.new_tensor(factors)).unbind(1)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + w / 2 + dx * w, boxes[:, 1] + h / 2 + dy * h
    half_w, half_h = w * dw.clamp(max=math.log(1000 / 16)).exp() / 2, h * dh.clamp(max=math.log(1000 / 16)).exp() / 2
    return torch.stack(
        [(x - half_w).clamp(0, 96), (y - half_h).clamp(0, 64), (x + half_w).clamp(0, 96), (y + half_h).clamp(0, 64)], 1
    )


def head(detector: CascadeRCNN, stage: int, maps: dict[str, Tensor], boxes: Tensor, aligned: bool) -> tuple[Tensor, Tensor]:
    """Logits and corrections of a stage, by its weights. All boxes here are small enough for p2."""
    part = detector.model.roi_heads[stage]
    pooled = roi_align(maps["p2"], [boxes], 7, 1 / 4, 0 if aligned else 2, aligned).flatten(1)
    x = (pooled @ part.box_head.fc6.weight.T + part.box_head.fc6.bias).relu()
    x = (x @ part.box_head.fc7.weight.T + part.box_head.fc7.bias).relu()
    cls, box = part.box_predictor.cls_score, part.box_predictor.bbox_pred
    return x @ cls.weight.T + cls.bias, x @ box.weight.T + box.bias


@pytest.mark.parametrize("conventions", ["torchvision", "mmdetection"])
def test_decode_equals_a_recomputation(conventions: Any) -> None:
    detector, aligned = build(conventions=conventions), conventions == "mmdetection"
    with torch.no_grad():
        prediction = detector(image())
        (boxes,) = detector.propose(prediction)
        logits = []
        for stage in range(3):
            scores, deltas = head(detector, stage, prediction.features, boxes, aligned)
            logits.append(scores)
            looked_at, boxes = boxes, moved(boxes, deltas, FACTORS[conventions][stage])
        if aligned:
            joined = torch.stack(logits).mean(0).softmax(1)
        else:
            joined = sum(head(detector, s, prediction.features, looked_at, aligned)[0].softmax(1) for s in range(3)) / 3
        rows, columns = (joined[:, 1:] > 0.001).nonzero().unbind(1)
        solid = ((boxes[:, 2:] - boxes[:, :2]) >= 0.01).all(1)[rows]
        rows, columns = rows[solid], columns[solid]
        scores = joined[rows, columns + 1]
        keep = batched_nms(boxes[rows], scores, columns, 0.5)[:100]
        (found,) = detector.decode(prediction)
    assert (boxes - looked_at).abs().max() > 1
    assert len(keep) > 10
    torch.testing.assert_close(found["boxes"], boxes[rows][keep], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["scores"], scores[keep], rtol=1e-4, atol=1e-5)
    assert torch.equal(found["labels"], columns[keep])


def test_refine_moves_by_the_factors_of_its_stage() -> None:
    detector = build()
    with torch.no_grad():
        prediction, boxes = detector(image()), [torch.tensor([[10.0, 12.0, 40.0, 44.0], [50.0, 5.0, 90.0, 60.0]])]
        for stage in range(3):
            roi = detector.roi_head(detector.pool(prediction, boxes), stage)
            assert torch.equal(roi.deltas[:, 0], roi.deltas[:, 2])  # one correction for all classes
            expected = moved(boxes[0], roi.deltas[:, 0], FACTORS["torchvision"][stage])
            torch.testing.assert_close(detector.refine(prediction, boxes, roi, stage)[0], expected, rtol=1e-5, atol=1e-4)


def test_training_boxes_go_from_stage_to_stage_and_ground_truth_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build()
    given: list[Tensor] = []
    for part in detector.model.roi_heads:
        select = part.select_training_samples

        def spy(boxes: list[Tensor], targets: Any, select: Any = select) -> Any:
            given.append(boxes[0].clone())
            return select(boxes, targets)

        monkeypatch.setattr(part, "select_training_samples", spy)
    truth = torch.tensor([[10.0, 12.0, 40.0, 44.0]])
    target = Target(boxes=truth, labels=torch.tensor([1]))
    proposals = torch.tensor([[8.0, 8.0, 42.0, 40.0], [60.0, 20.0, 80.0, 50.0]])
    with torch.no_grad():
        prediction = detector(image())
        detector.loss(prediction, [target], [proposals])
        expected = proposals
        for stage in range(2):
            roi = detector.roi_head(detector.pool(prediction, [expected]), stage)
            (expected,) = detector.refine(prediction, [expected], roi, stage)
            assert len(expected) == 2
            torch.testing.assert_close(given[stage + 1], expected, rtol=1e-5, atol=1e-3)
    assert torch.equal(given[0], proposals)


def test_gains_of_stages_and_parts_multiply() -> None:
    target = Target(boxes=torch.tensor([[10.0, 12.0, 40.0, 44.0]]), labels=torch.tensor([1]))
    plain = build(stage_gains=(1, 1, 1))
    usual, other = build(), build(stage_gains=(2, 0, 1), roi_cls_gain=3.0)
    losses = [d.loss(d(image()), [target]) for d in (plain, usual, other)]
    for i, (gain, changed) in enumerate(zip((1, 0.5, 0.25), (2, 0, 1)), start=1):
        assert losses[0][f"roi_cls_{i}"] > 0
        torch.testing.assert_close(losses[1][f"roi_cls_{i}"], gain * losses[0][f"roi_cls_{i}"])
        torch.testing.assert_close(losses[2][f"roi_cls_{i}"], 3 * changed * losses[0][f"roi_cls_{i}"])
        torch.testing.assert_close(losses[2][f"roi_box_{i}"], changed * losses[0][f"roi_box_{i}"])
    assert len(losses[0]) == 8


def test_least_overlaps_grow_from_stage_to_stage() -> None:
    detector = build()
    box, truth = torch.tensor([[0.0, 0.0, 65.0, 10.0]]), torch.tensor([[0.0, 0.0, 100.0, 10.0]])  # IoU 0.65
    found = [
        part.assign_targets_to_proposals([box], [truth], [torch.tensor([2])])[1][0].item() for part in detector.model.roi_heads
    ]
    assert found == [2, 2, 0]


def test_conventions_of_mmdetection_change_the_pooler_of_every_stage() -> None:
    assert all(part.box_roi_pool.aligned for part in build(conventions="mmdetection").model.roi_heads)
    assert not any(part.box_roi_pool.aligned for part in build().model.roi_heads)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage_gains": (1, 1)}, "stage_gains: expected 3 factors"),
        ({"ious": (0.5, 0.6, 1.7)}, "ious: expected 3 numbers"),
        ({"conventions": "detectron"}, "conventions: expected one of torchvision, mmdetection"),
        ({"channels": 0}, "channels: expected a positive number"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(**changes)
