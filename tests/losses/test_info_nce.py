from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkd.losses.info_nce import Candidates, info_nce


def data(
    rows: int = 6, others: int = 3, past: int = 9, width: int = 4, first: int = 2, dtype: Any = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Candidates]:
    """Boxes of two images, many of which overlap; ``first`` rows of another process come before one's own."""
    g = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randn(count, width, generator=g, dtype=torch.float64).to(dtype)

    count = rows + others
    corners = 20 * torch.rand(count, 2, generator=g, dtype=torch.float64)
    boxes = torch.cat([corners, corners + 15], dim=1).float()
    images = torch.arange(count) % 2
    return draw(rows), draw(count), F.normalize(draw(past), dim=1), Candidates(boxes, images, first)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in range(2))
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(shared / (sum(areas) - shared))


def reference(student: Tensor, teacher: Tensor, queue: Tensor, of: Candidates, gamma: float, iou: float) -> tuple[float, float]:
    """By loops over pairs, in float64: loss and bound."""
    s, t, q = (v.detach().double().numpy() for v in (student, teacher, queue))
    boxes, images = of.boxes.double().numpy(), of.images.numpy()

    def critic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(a @ b / np.sqrt((a @ a) * (b @ b)) / gamma))

    loss, bound = 0.0, 0.0
    for i, row in enumerate(s):
        own = of.first + i
        negatives = [critic(row, k) for k in q]
        for j in range(len(t)):
            if j != own and not (images[j] == images[own] and overlap(boxes[j], boxes[own]) > iou):
                negatives.append(critic(row, t[j]))
        positive = critic(row, t[own])
        loss -= np.log(positive / (positive + sum(negatives)))
        bound += np.log(1 + len(negatives))
    count = max(len(s), 1)
    return loss / count, (bound - loss) / count


@pytest.mark.parametrize("iou", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "others", "past", "first"), [(1, 0, 0, 0), (6, 3, 9, 2), (11, 0, 5, 0), (5, 8, 0, 8)])
def test_equals_the_formula_in_float64(rows: int, others: int, past: int, first: int, iou: float) -> None:
    values = data(rows, others, past, first=first)
    loss, bound = reference(*values, 0.3, iou)
    found = info_nce(*values, 0.3, iou)
    assert found.loss.item() == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert found.bound.item() == pytest.approx(bound, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("elements", [1, 7, 40])
def test_parts_do_not_change_value_or_gradient(elements: int) -> None:
    found = []
    for size in (elements, 10**6):
        student, teacher, queue, of = data()
        student, teacher = student.requires_grad_(), teacher.requires_grad_()
        loss = info_nce(student, teacher, queue, of, elements=size).loss
        found.append((loss, *torch.autograd.grad(loss, (student, teacher))))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("past", [0, 9])
def test_gradient_for_both_sides(past: int) -> None:
    student, teacher, queue, of = data(past=past)
    values = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: info_nce(s, t, queue, of, 0.5, elements=13).loss, values)
    assert not info_nce(*values, queue, of).bound.requires_grad


def test_gradient_when_the_queue_changes_before_the_backward_pass() -> None:
    gradients = []
    for change in (False, True):
        student, teacher, queue, of = data()
        loss = info_nce(student.requires_grad_(), teacher.requires_grad_(), queue, of).loss
        if change:
            queue.zero_()
        gradients.append(torch.autograd.grad(loss, (student, teacher)))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_same_image_boxes_that_overlap_are_no_negatives() -> None:
    student, teacher = torch.eye(2, 4), torch.eye(2, 4)
    near = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])  # IoU 0.6
    for images, iou, negatives in (([0, 0], 0.5, 0), ([0, 0], 0.61, 1), ([0, 1], 0.5, 1)):
        found = info_nce(student, teacher, torch.zeros(0, 4), Candidates(near, torch.tensor(images)), 1.0, iou)
        expected = np.log(1 + negatives * np.exp(-1))
        assert found.loss.item() == pytest.approx(expected, abs=1e-6)
        assert found.bound.item() == pytest.approx(np.log(1 + negatives) - expected, abs=1e-6)


def test_boxes_without_area_exclude_nothing() -> None:
    student, teacher, queue, of = data()
    flat = of._replace(boxes=torch.zeros_like(of.boxes))
    loss, _ = reference(student, teacher, queue, of, 0.07, 1.0)
    assert info_nce(student, teacher, queue, flat).loss.item() == pytest.approx(loss, rel=1e-6)


def test_no_box_gives_zero_with_a_gradient_of_zero() -> None:
    for others in (0, 3):
        student, teacher, queue, of = data(0, others, first=others)
        found = info_nce(student.requires_grad_(), teacher.requires_grad_(), queue, of)
        assert found.loss.item() == found.bound.item() == 0
        gradients = torch.autograd.grad(found.loss, (student, teacher))
        assert all(g.abs().sum() == 0 for g in gradients)


def test_float32_inside_autocast_and_no_overflow_at_a_small_gamma() -> None:
    student, teacher, queue, of = data(dtype=torch.bfloat16)
    values = student, teacher, F.normalize(queue.float(), dim=1), of
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = info_nce(*values)
    assert found.loss.dtype == found.bound.dtype == torch.float32
    assert found.loss.item() == pytest.approx(reference(*values, 0.07, 0.5)[0], rel=1e-5)
    small = info_nce(*data(dtype=torch.float32), gamma=1e-4)
    assert torch.isfinite(small.loss)


def test_products_are_exact_in_both_passes() -> None:
    seen: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.mm.default:
                seen.append(torch.get_float32_matmul_precision())
            return function(*args, **(kwargs or {}))

    student, teacher, queue, of = data(dtype=torch.float32)
    torch.set_float32_matmul_precision("high")
    try:
        with Watch():
            loss = info_nce(student.requires_grad_(), teacher.requires_grad_(), queue, of).loss
            forward = len(seen)
            loss.backward()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert 0 < forward < len(seen)
    assert set(seen) == {"highest"}


def test_pairs_are_not_held_at_once() -> None:
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            sizes.extend(v.numel() for v in torch.utils._pytree.tree_leaves(out) if isinstance(v, Tensor))
            return out

    student, teacher, queue, of = data(200, 100, 3000, width=8, dtype=torch.float32)
    with Watch():
        loss = info_nce(student.requires_grad_(), teacher.requires_grad_(), queue, of, elements=10_000).loss
        loss.backward()
    assert max(sizes) <= 8 * 3000  # the queue itself; all pairs are 660,000
