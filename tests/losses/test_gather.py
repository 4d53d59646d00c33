"""One process; what two gather is in test_two_processes.py, where one has more boxes than the other."""

from __future__ import annotations

import torch

from detkd.losses.gather import gather_rows


def test_one_process_has_its_own_rows() -> None:
    features, images = torch.rand(3, 2, requires_grad=True), torch.arange(3)
    found, first = gather_rows(features, images)
    assert first == 0
    assert not found[0].requires_grad
    assert torch.equal(found[0], features)
    assert torch.equal(found[1], images)
    assert gather_rows(torch.zeros(0, 2))[0][0].shape == (0, 2)
