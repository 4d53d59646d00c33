"""Which norms are found, and what is read from them."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from detkd.detectors.norms import find_norms


def network() -> nn.Sequential:
    norms = [
        nn.BatchNorm2d(2, eps=1e-3),
        nn.Sequential(FrozenBatchNorm2d(3), nn.GroupNorm(1, 3)),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.LayerNorm(4),
        nn.InstanceNorm2d(2),
    ]
    return nn.Sequential(*norms)


def test_norms_with_stored_statistics_in_order_of_definition() -> None:
    assert [(n.name, n.eps, len(n.mean)) for n in find_norms(network())] == [("0", 1e-3, 2), ("1.0", 1e-5, 3), ("2", 1e-5, 2)]


def test_tensors_are_the_layers_own() -> None:
    net = network()
    batch, frozen, bare = find_norms(net)
    net[0].running_mean.fill_(7)
    assert batch.mean.tolist() == [7, 7]
    assert batch.module is net[0]
    assert not batch.weight.requires_grad
    assert frozen.var.data_ptr() == net[1][0].running_var.data_ptr()
    assert (bare.weight.tolist(), bare.bias.tolist()) == ([1, 1], [0, 0])


def test_skip_leaves_out_a_part_and_nothing_that_sounds_like_it() -> None:
    net = nn.ModuleDict({"roi": nn.Sequential(nn.BatchNorm2d(1)), "roi2": nn.BatchNorm2d(1), "body": nn.BatchNorm2d(1)})
    assert [n.name for n in find_norms(net, skip=("roi",))] == ["roi2", "body"]
    assert [n.name for n in find_norms(net, skip=("roi2", "body"))] == ["roi.0"]


def test_none() -> None:
    assert find_norms(nn.Conv2d(1, 1, 1)) == []
    assert find_norms(torch.nn.BatchNorm1d(3)) == []
