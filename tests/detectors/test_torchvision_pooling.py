"""RoIAlign from pyramids, and anchors of exact sides."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detkd.detectors.torchvision.anchors import ExactAnchors
from detkd.detectors.torchvision.pooling import PyramidPooler

CORNERS = ((0, -1), (1, -1), (2, 1), (3, 1))
SIDES = (20.0, 55.9, 56.0, 111.9, 112.0, 223.0, 224.0, 447.0, 448.0, 4000.0)


def aligned(size: tuple[int, int], strides: tuple[int, ...]) -> PyramidPooler:
    return PyramidPooler(size, strides, sampling_ratio=0, aligned=True)


def pyramid() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {str(i): torch.rand(2, 3, 128 >> i, 160 >> i, generator=generator) for i in range(4)}


def test_aligned_pooling_of_a_linear_map_is_its_value_at_the_centres_of_bins() -> None:
    # cell (i, j) of stride 4 stands for the pixel centre (4 j + 2, 4 i + 2)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    value = (3 * (4 * x + 2) + 2 * (4 * y + 2))[None, None]
    box = torch.tensor([[20.0, 30.0, 62.0, 86.0]])
    pooled = aligned((7, 7), (4,))({"0": value}, [box], [(128, 128)])
    centre_x, centre_y = 20 + (np.arange(7) + 0.5) * 6, 30 + (np.arange(7) + 0.5) * 8
    torch.testing.assert_close(
        pooled[0, 0].numpy(), (3 * centre_x[None] + 2 * centre_y[:, None]).astype(np.float32), rtol=1e-5, atol=0
    )


def test_levels_are_those_of_torchvision_and_of_the_formula() -> None:
    boxes = [torch.tensor([[0.0, 0.0, s, s] for s in SIDES[:6]]), torch.tensor([[4.0, 4.0, 4 + s, 4 + s] for s in SIDES[6:]])]
    pooler, maps = aligned((2, 2), (4, 8, 16, 32)), pyramid()
    found = pooler(maps, boxes, [(512, 640)] * 2)
    every = pooler.every(list(maps.values()), boxes)
    assert every.shape == (10, 4, 3, 2, 2)
    levels = [min(max(math.floor(4 + math.log2(s / 224)) - 2, 0), 3) for s in SIDES]
    torch.testing.assert_close(found, every[torch.arange(10), torch.tensor(levels)])
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 2, 2)
    plain = PyramidPooler((2, 2), (4, 8, 16, 32))
    own = plain.every(list(maps.values()), boxes)
    torch.testing.assert_close(theirs(maps, boxes, [(512, 640)] * 2), own[torch.arange(10), torch.tensor(levels)])
    assert torch.equal(theirs(maps, boxes, [(512, 640)] * 2), plain(maps, boxes, [(512, 640)] * 2))
    assert not torch.allclose(found, own[torch.arange(10), torch.tensor(levels)])


def test_aligned_pooling_passes_gradients_and_takes_no_boxes() -> None:
    maps = {name: m.requires_grad_() for name, m in pyramid().items()}
    pooler = aligned((7, 7), (4, 8, 16, 32))
    assert pooler(maps, [torch.zeros(0, 4)] * 2, [(512, 640)] * 2).shape == (0, 3, 7, 7)
    boxes = [torch.tensor([[10.0, 10.0, 50.0, 60.0]]), torch.tensor([[0.0, 0.0, 300.0, 300.0]])]
    pooled = pooler(maps, boxes, [(512, 640)] * 2)
    expected = roi_align(maps["2"], [torch.zeros(0, 4), boxes[1]], 7, 1 / 16, 0, True)
    torch.testing.assert_close(pooled[1:], expected)
    pooled.sum().backward()
    touched = {name for name, m in maps.items() if m.grad is not None and bool(m.grad.any())}
    assert touched == {"0", "2"}


def test_exact_anchors_against_loops() -> None:
    sizes, ratios, strides = [[8.5, 11.0], [17.0, 22.0]], [0.5, 1.0, 2.0], [8, 16]
    generator = ExactAnchors(sizes, ratios, strides)
    assert generator.num_anchors_per_location() == [6, 6]
    maps = [torch.zeros(1, 4, 3, 5), torch.zeros(1, 4, 2, 3)]
    expected = [
        [
            column * stride + x * s / math.sqrt(r) / 2 if i % 2 == 0 else row * stride + x * s * math.sqrt(r) / 2
            for i, x in CORNERS
        ]
        for m, sides, stride in zip(maps, sizes, strides)
        for row in range(m.shape[2])
        for column in range(m.shape[3])
        for r in ratios
        for s in sides
    ]
    # an image that the maps do not divide
    found = generator(ImageList(torch.zeros(2, 3, 21, 37), [(21, 37)] * 2), maps)
    assert len(found) == 2
    torch.testing.assert_close(found[1], torch.tensor(expected))
