from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detkd.losses.reduce import mean_count

# a process: its part of a batch through two DeFeat formulas; prints values and gradients
SCRIPT = """
import json, sys
import torch
from torch import distributed as dist
from detkd.losses.decoupled import decoupled_l2
from detkd.losses.defeat_proposals import decoupled_kl

rank, processes, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
g = torch.Generator().manual_seed(0)
student, teacher = (torch.randn(4, 3, 5, 6, generator=g, dtype=torch.float64) for _ in range(2))
mask = torch.zeros(4, 5, 6, dtype=torch.bool)
mask[0, 1:3, 2:5] = True  # the second process has no object
logits, target = (torch.randn(8, 4, generator=g, dtype=torch.float64) for _ in range(2))
positive = torch.tensor([1, 1, 0, 1, 0, 0, 0, 0], dtype=torch.bool)
if processes > 1:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
part, rows = slice(rank * 4 // processes, (rank + 1) * 4 // processes), slice(rank * 8 // processes, (rank + 1) * 8 // processes)
weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
values = [
    *decoupled_l2([weight * student[part]], [teacher[part]], [mask[part]]),
    *decoupled_kl(weight * logits[rows], target[rows], positive[rows], 2.0, 3.0),
]
out = [(v.item(), torch.autograd.grad(v, weight, retain_graph=True)[0].item()) for v in values]
if processes > 1:
    dist.destroy_process_group()
print(json.dumps(out))
"""


def test_one_process_counts_alone() -> None:
    count = torch.tensor([0, 1, 12])
    out = mean_count(count)
    assert out.tolist() == [1.0, 1.0, 12.0]
    assert out.dtype == torch.float32
    assert count.tolist() == [0, 1, 12]
    assert mean_count(torch.tensor(3.0, dtype=torch.float64)).dtype == torch.float64
    assert not mean_count(torch.tensor(3.0, requires_grad=True)).requires_grad


@pytest.mark.slow
def test_the_mean_over_two_processes_is_the_joined_batch(tmp_path: Path) -> None:
    def started(rank: int, processes: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(rank), str(processes), (tmp_path / "meet").as_uri()]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def read(process: subprocess.Popen[str]) -> list[list[float]]:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return json.loads(out)

    joined = read(started(0, 1))
    both = [read(p) for p in [started(rank, 2) for rank in range(2)]]
    assert torch.tensor(joined).abs().min() > 0
    torch.testing.assert_close(torch.tensor(both, dtype=torch.float64).mean(0), torch.tensor(joined, dtype=torch.float64))
