"""Complete IoU, distributions, assignment and the loss of YOLOv8 and YOLO11; none of it needs the package."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou, complete_box_iou_loss

from detkd.detectors.ultralytics.assignment import assign, inside
from detkd.detectors.ultralytics.dfl import decode_boxes, distribution_loss, site_grid, wanted_distances
from detkd.detectors.ultralytics.iou import complete_iou
from detkd.detectors.ultralytics.loss import pad_targets, yolo_loss
from detkd.structures import Target

SIZES, STRIDES, BINS = ((8, 8, 1), (4, 4, 1), (2, 2, 1)), (8, 16, 32), 16
SITES = 64 + 16 + 4


def target(*rows: tuple[float, float, float, float, int]) -> Target:
    return {
        "boxes": torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([row[4] for row in rows], dtype=torch.int64),
    }


def raw(batch: int = 2, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Box and class outputs of all sites, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    box = torch.randn(batch, SITES, 4 * BINS, generator=generator, dtype=torch.float64) * 2
    return box, torch.randn(batch, SITES, classes, generator=generator, dtype=torch.float64)


def some_boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40
    return torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40], 1)


def perfect(boxes: Tensor, labels: Tensor, sharpness: float = 60.0) -> tuple[Tensor, Tensor]:
    """Outputs that say, at every site, the box and label of the target whose middle is nearest; one image."""
    centres, cells = site_grid(SIZES, STRIDES, torch.device("cpu"))
    nearest = torch.cdist(centres, (boxes[:, :2] + boxes[:, 2:]) / 2).argmin(1)
    distances = wanted_distances(boxes[nearest], centres, cells, BINS)  # (N, 4)
    left = distances.floor()
    bins = torch.arange(BINS)
    p = (left[..., None] == bins) * (left + 1 - distances)[..., None] + (left[..., None] + 1 == bins) * (distances - left)[
        ..., None
    ]
    box = p.clamp(min=1e-12).log().reshape(1, SITES, -1)
    held = inside(centres, boxes[None])[0].T[torch.arange(SITES), nearest]  # (N,)
    cls = torch.full((1, SITES, 3), -sharpness)
    cls[0, held, labels[nearest[held]]] = sharpness
    return box, cls


# Complete IoU


def test_complete_iou_is_torchvisions() -> None:
    a, b = some_boxes(20), some_boxes(30, seed=1)
    torch.testing.assert_close(complete_iou(a[:, None], b[None]), complete_box_iou(a, b), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(1 - complete_iou(a, b[:20]), complete_box_iou_loss(a, b[:20]), rtol=1e-5, atol=1e-6)


def test_complete_iou_has_torchvisions_gradient() -> None:
    a, b = some_boxes(20), some_boxes(20, seed=1)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    (1 - complete_iou(ours, b)).sum().backward()
    complete_box_iou_loss(theirs, b).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_complete_iou_known_values() -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    assert float(complete_iou(box, box)) == pytest.approx(1)
    # no overlap, side by side: centres 20 apart, outer box 30 x 10
    assert float(complete_iou(box, box + torch.tensor([20.0, 0, 20, 0]))) == pytest.approx(-400 / 1000)
    # half of the box: IoU 1/2, centres 2.5 apart, ratio of sides 2
    half = torch.tensor([0.0, 0.0, 10.0, 5.0])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert float(complete_iou(half, box)) == pytest.approx(0.5 - 6.25 / 200 - v / (0.5 + v) * v, rel=1e-5)


def test_complete_iou_of_boxes_without_area_is_finite() -> None:
    flat = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 9.0, 5.0], [5.0, 5.0, 5.0, 9.0]], requires_grad=True)
    value = complete_iou(flat[:, None], flat.detach()[None])
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


# Distributions


def test_sites_are_centres_of_cells_row_by_row() -> None:
    centres, cells = site_grid(SIZES, STRIDES, torch.device("cpu"))
    assert centres.shape == (SITES, 2)
    assert centres[:2].tolist() == [[4, 4], [12, 4]]
    assert centres[8].tolist() == [4, 12]
    assert centres[64].tolist() == [8, 8]
    assert cells[[0, 64, 80], 0].tolist() == [8, 16, 32]


def test_a_side_is_the_mean_of_its_distribution() -> None:
    logits = torch.full((1, 4, BINS), -100.0)
    logits[0, :, 0] = 0  # left 0
    logits[0, 1] = torch.zeros(BINS)  # top: all bins alike, 7.5
    logits[0, 2, [3, 4]] = 50.0  # right: between 3 and 4
    logits[0, 3, 15] = 50.0  # bottom: the last
    boxes = decode_boxes(logits.reshape(1, -1), torch.tensor([[20.0, 30.0]]), torch.tensor([[8.0]]))
    torch.testing.assert_close(boxes, torch.tensor([[20.0, 30 - 7.5 * 8, 20 + 3.5 * 8, 30 + 15 * 8]]))


def test_wanted_distances_are_the_inverse_within_the_bins() -> None:
    centres, cells = torch.tensor([[20.0, 30.0]]), torch.tensor([[8.0]])
    found = wanted_distances(torch.tensor([[10.0, 22.0, 1000.0, 29.0]]), centres, cells, BINS)
    torch.testing.assert_close(found, torch.tensor([[1.25, 1.0, 14.99, 0.0]]))


def test_distribution_loss_known_value() -> None:
    logits = torch.randn(4, BINS, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    distances = torch.tensor([2.25, 0.0, 14.99, 7.5])
    expected = [
        -(0.75 * log_p[0, 2] + 0.25 * log_p[0, 3]),
        -log_p[1, 0],
        -(0.01 * log_p[2, 14] + 0.99 * log_p[2, 15]),
        -(0.5 * log_p[3, 7] + 0.5 * log_p[3, 8]),
    ]
    torch.testing.assert_close(
        distribution_loss(logits.reshape(-1), distances), torch.stack(expected).mean(), rtol=1e-5, atol=1e-5
    )


def test_distribution_loss_is_least_at_the_wanted_distance() -> None:
    logits = torch.zeros(4 * BINS, requires_grad=True)
    distances = torch.tensor([2.25, 0.5, 14.25, 7.0])
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        distribution_loss(logits, distances).backward()
        optimizer.step()
    boxes = decode_boxes(logits.detach()[None], torch.zeros(1, 2), torch.ones(1, 1))[0]
    torch.testing.assert_close(boxes, distances * torch.tensor([-1, -1, 1, 1]), rtol=0, atol=0.05)


# Assignment


def test_points_inside_and_the_nearest_for_a_box_without_any() -> None:
    centres, _ = site_grid(((8, 8, 1),), (8,), torch.device("cpu"))
    boxes = torch.tensor([[[2.0, 2.0, 22.0, 14.0], [37.0, 37.0, 39.0, 39.0], [12.0, 12.0, 20.0, 20.0]]])
    found = inside(centres, boxes)[0]
    assert [[tuple(c.tolist()) for c in centres[row]] for row in found[:2]] == [
        [(4, 4), (12, 4), (20, 4), (4, 12), (12, 12), (20, 12)],
        [(36, 36)],
    ]
    assert found[2].sum() == 1  # centres on its edges are not inside


def test_assignment_takes_the_best_aligned_and_scales_their_scores() -> None:
    centres, _ = site_grid(SIZES, STRIDES, torch.device("cpu"))
    boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    generator = torch.Generator().manual_seed(0)
    predicted = boxes + torch.randn(SITES, 4, generator=generator) * 4
    scores = torch.rand(1, SITES, 3, generator=generator)
    index, score = assign(scores, predicted[None], centres, boxes[None], torch.tensor([[2]]), torch.tensor([[True]]))
    overlap = complete_iou(predicted, boxes).clamp(min=0)
    alignment = scores[0, :, 2] ** 0.5 * overlap**6 * inside(centres, boxes[None])[0, 0]
    best = alignment.topk(10)
    assert set(score[0].nonzero()[:, 0].tolist()) == set(best.indices.tolist())
    assert (index == 0).all()
    torch.testing.assert_close(
        score[0, best.indices], best.values / best.values[0] * overlap[best.indices].max(), rtol=1e-5, atol=1e-6
    )
    assert float(score.max()) == pytest.approx(float(overlap[best.indices].max()))


def test_a_site_of_two_boxes_goes_to_the_one_it_overlaps_most() -> None:
    centres = torch.tensor([[10.0, 10.0]])
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 24.0, 24.0]]])
    predicted = torch.tensor([[[0.0, 0.0, 23.0, 23.0]]])
    both = torch.tensor([[True, True]])
    index, score = assign(torch.tensor([[[0.9, 0.1]]]), predicted, centres, boxes, torch.tensor([[0, 1]]), both)
    assert index.item() == 1
    assert score.item() > 0
    index, _ = assign(
        torch.tensor([[[0.9, 0.1]]]), predicted, centres, boxes, torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    )
    assert index.item() == 0


def test_what_does_not_exist_is_assigned_nothing() -> None:
    centres, _ = site_grid(SIZES, STRIDES, torch.device("cpu"))
    boxes = torch.tensor([[[10.0, 10.0, 50.0, 50.0]]])
    _, score = assign(
        torch.rand(1, SITES, 3), boxes.expand(1, SITES, 4), centres, boxes, torch.tensor([[1]]), torch.tensor([[False]])
    )
    assert (score == 0).all()


def test_a_box_of_a_few_pixels_is_assigned() -> None:
    box = torch.tensor([[37.0, 37.0, 40.0, 40.0]])
    _, score = assign(
        torch.rand(1, SITES, 3),
        box.expand(1, SITES, 4),
        site_grid(SIZES, STRIDES, box.device)[0],
        box[None],
        torch.tensor([[1]]),
        torch.tensor([[True]]),
    )
    assert int((score > 0).sum()) == 1


# The loss


def test_padding_marks_what_is_there() -> None:
    targets = [target((1, 2, 3, 4, 2), (5, 5, 5, 9, 1)), target()]
    boxes, labels, exists = pad_targets(targets, torch.zeros(1))
    assert boxes.shape == (2, 3, 4)
    assert exists.tolist() == [[True, False, False], [False, False, False]]
    assert labels.tolist() == [[2, 0, 0], [0, 0, 0]]
    assert boxes[0, 0].tolist() == [1, 2, 3, 4]
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_loss_of_a_perfect_prediction_is_that_of_the_bins_alone() -> None:
    wanted = target((8, 8, 40, 44, 0), (50, 12, 62, 60, 2))
    box, cls = perfect(wanted["boxes"], wanted["labels"])
    parts = yolo_loss(box, cls, SIZES, STRIDES, [wanted])
    assert float(parts["box"]) == pytest.approx(0, abs=1e-5)
    # left over is the entropy of splitting a distance between two bins, at most log 2
    assert 0 < float(parts["dfl"]) < math.log(2)
    worse = yolo_loss(*(x.float() for x in raw(1)), SIZES, STRIDES, [wanted])
    assert all(worse[name] > parts[name] for name in ("box", "dfl"))


def test_loss_known_value_for_one_site() -> None:
    # one cell of 32 px, one box that it holds, two bins a side: all distances are 1/2 cell
    box, cls = torch.zeros(1, 1, 8), torch.tensor([[[2.0, -1.0]]])
    parts = yolo_loss(box, cls, ((1, 1, 1),), (32,), [target((0, 0, 32, 16.5, 1))])
    predicted = torch.tensor([0.0, 0.0, 32.0, 32.0])
    overlap = complete_iou(predicted, torch.tensor([0.0, 0.0, 32.0, 16.5]))
    assert float(parts["box"]) == pytest.approx(float((1 - overlap) * overlap), rel=1e-5)
    assert float(parts["dfl"]) == pytest.approx(math.log(2) * float(overlap), rel=1e-5)
    p = torch.tensor([2.0, -1.0]).sigmoid()
    expected = -(1 - p[0]).log() - overlap * p[1].log() - (1 - overlap) * (1 - p[1]).log()
    assert float(parts["cls"]) == pytest.approx(float(expected), rel=1e-5)


def test_loss_without_boxes_is_that_of_classes_against_nothing() -> None:
    box, cls = raw()
    parts = yolo_loss(box, cls, SIZES, STRIDES, [target(), target((5, 5, 5, 20, 1))])
    assert float(parts["box"]) == float(parts["dfl"]) == 0
    assert float(parts["cls"]) == pytest.approx(float(torch.nn.functional.softplus(cls).sum()), rel=1e-5)


def test_loss_is_the_same_for_a_batch_and_for_the_batch_twice() -> None:
    targets = [target((8, 8, 40, 44, 0), (30, 20, 62, 60, 2)), target((4, 30, 30, 60, 1))]
    # good enough predictions that target scores add up to more than 1, below which the sum is not divided by them
    pairs = [perfect(t["boxes"], t["labels"], sharpness=1.0) for t in targets]
    box, cls = (torch.cat(parts) + noise.float() / 4 for parts, noise in zip(zip(*pairs), raw()))
    once = yolo_loss(box, cls, SIZES, STRIDES, targets)
    twice = yolo_loss(box.repeat(2, 1, 1), cls.repeat(2, 1, 1), SIZES, STRIDES, targets * 2)
    torch.testing.assert_close(twice, once)


def test_loss_of_an_image_does_not_depend_on_its_neighbours_beyond_the_normaliser() -> None:
    box, cls = raw()
    first, second = target((8, 8, 40, 44, 0), (30, 20, 62, 60, 2)), target()
    both = yolo_loss(box, cls, SIZES, STRIDES, [first, second])
    alone = yolo_loss(box[:1], cls[:1], SIZES, STRIDES, [first])
    torch.testing.assert_close(both["box"], alone["box"])
    torch.testing.assert_close(both["dfl"], alone["dfl"])


def test_gradient_leads_to_the_box() -> None:
    box, cls = (x.float().requires_grad_() for x in raw(1))
    wanted = [target((9, 9, 45, 40, 1))]
    optimizer = torch.optim.Adam([box, cls], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        torch.stack(list(yolo_loss(box, cls, SIZES, STRIDES, wanted).values())).sum().backward()
        optimizer.step()
    centres, cells = site_grid(SIZES, STRIDES, box.device)
    best = cls[0, :, 1].argmax()
    found = decode_boxes(box[0].detach(), centres, cells)[best]
    torch.testing.assert_close(found, wanted[0]["boxes"][0], rtol=0, atol=1.0)
    assert cls[0, best, 1].sigmoid() > 0.5


def test_loss_is_float32_whatever_the_outputs_are() -> None:
    box, cls = raw()
    for dtype in (torch.bfloat16, torch.float64):
        parts = yolo_loss(box.to(dtype), cls.to(dtype), SIZES, STRIDES, [target((8, 8, 40, 44, 0)), target()])
        assert all(part.dtype == torch.float32 and part.ndim == 0 for part in parts.values())
