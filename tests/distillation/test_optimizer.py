from __future__ import annotations

from typing import Any

import torch
from torch import nn

from detkd.distillation.optimizer import parameter_groups


def test_convolutions_and_linear_layers_decay_alone(tiny_detector: Any) -> None:
    detector, connector = tiny_detector(), nn.Linear(2, 3)
    decayed, others = parameter_groups(detector, connector)
    names = {id(p): n for n, p in [*detector.named_parameters(), *connector.named_parameters(prefix="connector")]}
    assert {names[id(p)] for p in decayed["params"]} == {
        *(f"stages.{i}.0.weight" for i in range(3)),
        "head.weight",
        "connector.weight",
    }
    assert "weight_decay" not in decayed
    assert others["weight_decay"] == 0
    assert {names[id(p)] for p in others["params"]} == set(names.values()) - {names[id(p)] for p in decayed["params"]}


def test_the_optimizers_own_decay_reaches_the_first_group_only(tiny_detector: Any) -> None:
    optimizer = torch.optim.SGD(parameter_groups(tiny_detector()), lr=0.1, weight_decay=5e-4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]


def test_frozen_and_shared_parameters() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    groups = parameter_groups(first, second)
    assert len(groups) == 1
    assert len(groups[0]["params"]) == 1
