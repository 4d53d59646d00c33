from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from detkd.losses.defeat_proposals import decoupled_kl
from detkd.losses.info_nce import Candidates, info_nce
from detkd.losses.prediction import softmax_kl, softmax_to_sigmoid
from detkd.losses.reduce import mean_count, rank, world_size
from detkd.losses.regions import object_masks
from detkd.losses.sgfi import sgfi_loss
from detkd.losses.small_copy import shrink

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


def test_one_process_is_the_first_of_one() -> None:
    assert (rank(), world_size()) == (0, 1)


WAITS = {"new_tensor", "tensor", "as_tensor", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class Waiting(TorchFunctionMode):
    """Calls with which a program waits for a GPU: reading a number, and making a tensor there of Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = function is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool
        if mask or getattr(function, "__name__", "") in WAITS:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


def few(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def boxes_of(count: int) -> torch.Tensor:
    return torch.cat([few(count, 2), few(count, 2) + 20], dim=1)


FORMULAS: dict[str, Callable[[], Any]] = {
    "info_nce": lambda: info_nce(few(5, 4), few(5, 4), few(7, 4), Candidates(boxes_of(5), torch.zeros(5))).bound,
    "sgfi": lambda: sgfi_loss(few(3, 2, 4, 7, 7), few(3, 4, 7, 7), few(3, 2)),
    "prediction": lambda: softmax_kl(few(3, 4), few(3, 4)),
    "prediction_across": lambda: softmax_to_sigmoid(few(3, 4), few(3, 5)),
    "defeat_proposals": lambda: decoupled_kl(few(3, 4), few(3, 4), torch.zeros(3, dtype=torch.bool)),
    "defeat_neck": lambda: object_masks([{"boxes": boxes_of(3), "labels": torch.zeros(3)}], [(8, 8), (4, 4)], [4, 8]),
    "small_copy": lambda: shrink(few(1, 3, 32, 32), [{"boxes": boxes_of(3), "labels": torch.zeros(3)}], 0.5, (32, 32)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_do_not_wait_for_the_device(name: str) -> None:
    with Waiting() as mode:
        FORMULAS[name]()
    # the one tensor made of numbers stays on the CPU until it is copied (join_targets)
    assert mode.seen == (["tensor"] if name in ("defeat_neck", "small_copy") else [])


def test_waiting_is_noticed() -> None:
    with Waiting() as mode:
        few(3).new_tensor(1.0).item()
        few(3)[few(3) > 0.5]
    assert mode.seen == ["new_tensor", "item", "__getitem__"]


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
