from __future__ import annotations

import torch

from detkd.runtime.strategy import IndependentDDP


def test_wraps_nothing_so_that_no_gradient_is_averaged() -> None:
    strategy = IndependentDDP()
    module = torch.nn.Linear(1, 1)
    strategy.model = module
    strategy.configure_ddp()
    assert strategy.model is module
