from __future__ import annotations

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only

from detkd.runtime.strategy import IndependentDDP


def test_wraps_nothing_so_that_no_gradient_is_averaged() -> None:
    strategy = IndependentDDP()
    module = torch.nn.Linear(1, 1)
    strategy.model = module
    strategy.configure_ddp()
    assert strategy.model is module


def test_no_process_group_connects_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = LightningEnvironment()
    for name, value in (("LOCAL_RANK", "1"), ("NODE_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    strategy = IndependentDDP(parallel_devices=[torch.device("cpu")] * 2, cluster_environment=environment)
    strategy.setup_distributed()
    assert (strategy.global_rank, strategy.world_size) == (1, 2)
    assert not torch.distributed.is_initialized()
    strategy.barrier()  # waits for nobody
