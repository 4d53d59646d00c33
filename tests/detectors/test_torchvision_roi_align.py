from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import ops

from detkd.detectors.torchvision import roi_align as module
from detkd.detectors.torchvision.roi_align import bin_weights, roi_align


def boxes(count: int = 9, images: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """(count, 5) boxes of a 96 x 128 px image; some reach out of it, some have no area, one image has none."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * torch.tensor([120.0, 90.0])
    sides = torch.rand(count, 2, generator=generator, dtype=dtype) * 60
    rois = torch.cat([torch.randint(images, (count, 1), generator=generator).to(dtype), corner, corner + sides], dim=1)
    rois[0, 1:] = torch.tensor([-30.0, -9.0, 200.0, 140.0])
    rois[1, 1:] = torch.tensor([50.0, 40.0, 50.0, 40.0])
    return rois


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("stride", "size", "ratio"), [(4, (7, 7), 2), (16, (3, 5), 1), (64, (14, 14), 3)])
def test_values_and_gradient_are_torchvisions(aligned: bool, stride: int, size: Any, ratio: int) -> None:
    shape = (3, 4, -(-96 // stride), -(-128 // stride))
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    settings = (boxes(), size, 1 / stride, ratio, aligned)
    ours, theirs = roi_align(maps, *settings), ops.roi_align(maps, *settings)
    assert torch.equal(ours, theirs)
    assert type(ours.grad_fn).__name__ == "_RoIAlignBackward"
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, expected = (torch.autograd.grad(out, maps, towards)[0] for out in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert bool((found[2] == 0).all())  # an image without boxes


def test_gradcheck_and_no_boxes() -> None:
    maps = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    rois = torch.tensor([[0.0, 3.0, 2.0, 17.0, 15.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: roi_align(m, rois, (3, 3), 0.25, 2), maps)
    none = roi_align(maps, rois[:0], (3, 3), 0.25, 2)
    assert none.shape == (0, 2, 3, 3)
    none.sum().backward()
    assert maps.grad is not None
    assert not maps.grad.any()


def test_bins_are_the_product_of_their_axes() -> None:
    maps = torch.randn(1, 1, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rois = boxes(5, images=1)
    down = bin_weights(rois[:, 2], rois[:, 4], 7, 12, 1 / 8, 2, False)
    across = bin_weights(rois[:, 1], rois[:, 3], 7, 16, 1 / 8, 2, False)
    product = torch.einsum("rph,hw,rqw->rpq", down, maps[0, 0], across)
    torch.testing.assert_close(product, ops.roi_align(maps, rois, 7, 1 / 8, 2)[:, 0])


def test_large_maps_and_adaptive_points_are_left_to_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(2, 1, 8, 8, dtype=torch.float64).requires_grad_()
    assert type(roi_align(maps, boxes(), (2, 2), 0.1, 0).grad_fn).__name__ != "_RoIAlignBackward"
    monkeypatch.setattr(module, "_DENSE_CELLS", 63)
    assert type(roi_align(maps, boxes(), (2, 2), 0.1, 2).grad_fn).__name__ != "_RoIAlignBackward"
