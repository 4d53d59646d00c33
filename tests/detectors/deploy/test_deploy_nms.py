"""Suppression of fixed shape against torchvision's own, image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detkd.detectors.deploy.nms import decompositions, suppress, surviving


def boxes_of(batch: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that overlap, scores of which a third are 0, labels 0 to 2."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(batch, count, 2, generator=generator) * 30], dim=-1)
    scores = torch.rand(batch, count, generator=generator)
    return boxes, torch.where(scores < 1 / 3, 0.0, scores), torch.randint(3, (batch, count), generator=generator)


def test_it_keeps_what_torchvision_keeps() -> None:
    boxes, scores, labels = boxes_of(4, 80)
    kept = surviving(boxes, scores, labels, 3, 0.4)
    assert kept.shape == scores.shape
    assert 0 < int(kept.sum()) < int((scores > 0).sum())
    for i in range(4):
        there = (scores[i] > 0).nonzero()[:, 0]
        expected = there[batched_nms(boxes[i][there], scores[i][there], labels[i][there], 0.4)]
        assert sorted(expected.tolist()) == kept[i].nonzero()[:, 0].tolist()


def test_two_boxes_by_hand() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8]]]).repeat(3, 1, 1)  # IoU 0.8
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.9], [0.0, 0.0]])
    labels = torch.tensor([[0, 0], [0, 1], [0, 0]])
    kept = surviving(boxes, scores, labels, 2, 0.7)
    assert kept.tolist() == [[False, True], [True, True], [False, False]]
    assert surviving(boxes[:1], scores[:1], labels[:1], 2, 0.85).tolist() == [[True, True]]


def test_far_apart_images_cost_no_precision() -> None:
    """The two boxes have an IoU of 0.5 and a little: in float32, 100 classes of 64 images away, the little would be lost."""
    pair = torch.tensor([[0.0, 0, 640, 640], [0, 0, 640, 320.01]])
    boxes = pair.expand(64, 2, 4)
    scores, labels = torch.tensor([0.9, 0.8]).expand(64, 2), torch.full((64, 2), 99)
    assert surviving(boxes, scores, labels, 100, 0.5).tolist() == [[True, False]] * 64
    boxes = torch.tensor([[0.0, 0, 640, 640], [0, 0, 640, 319.99]]).expand(64, 2, 4)
    assert surviving(boxes, scores, labels, 100, 0.5).all()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torchvision about itself
def test_a_program_of_it_runs_where_few_or_none_are_left() -> None:
    class Alone(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
            kept: Tensor = suppress(boxes, scores, labels, 3, 0.5)
            return kept

    given = boxes_of(1, 30, seed=1)
    program = torch.export.export(Alone(), given, strict=False).run_decompositions(decompositions())
    run, labels = program.module(), torch.arange(30)[None] % 3  # the first three do not suppress each other
    for there in range(4):
        few = torch.where(torch.arange(30) < there, torch.tensor(0.5), 0.0)[None]
        assert torch.equal(run(given[0], few, labels), few > 0)


def test_the_operator_is_the_function() -> None:
    given = boxes_of(2, 30, seed=1)
    assert torch.equal(suppress(*given, 3, 0.5), surviving(*given, 3, 0.5))
    torch.library.opcheck(torch.ops.detkd.suppress.default, (*given, 3, 0.5), test_utils=("test_schema", "test_faketensor"))
