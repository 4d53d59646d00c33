"""Every term gives on two processes (gloo) the loss and the gradient of the joined batch, once both are averaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]

# A process: its half of a batch through all terms, then, of the first process, the whole batch. Called twice, so that a term that remembers has
# something to remember; the second call counts. In float64, so that only a wrong count can make a difference.
SCRIPT = """
import importlib.util, sys
from pathlib import Path
import torch
from torch import distributed as dist
from detkd.losses.step import Step

def load(name):
    spec = importlib.util.spec_from_file_location(f"detkd_tests_{name}", Path(sys.argv[1]) / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

load("doubles")
catalogue = load("catalogue")
torch.set_num_threads(1)
rank, meet, out = int(sys.argv[2]), sys.argv[3], sys.argv[4]
box = catalogue.target
targets = [box((8, 10, 40, 50, 2), (4, 4, 20, 30, 0)), box((20, 8, 50, 30, 1)), box(), box((2, 2, 60, 60, 0))]

def results(part):
    found = {}
    pairs = [(name, name, *catalogue.STUDENT_TERMS[name][-1:] * 2) for name in catalogue.TWO_PROCESSES]
    pairs += [("contrastive_dense", "contrastive", "faster_rcnn_r18", "fcos_r18")]
    for name, term_name, kind, of_student in pairs:
        teacher, student = catalogue.build(kind).double(), catalogue.build(of_student, seed=1).double()
        teacher.requires_grad_(False)
        images = catalogue.images_for(teacher, 4).double()
        term = catalogue.TERMS[term_name]()
        torch.manual_seed(5)
        term.setup(student, teacher)
        wanted = targets
        if hasattr(teacher, "propose"):  # one process has boxes, some of them on objects, the other has none
            propose, counts = teacher.propose, (12, 3, 0, 0)
            objects = propose(teacher(images))[0][:2].tolist()
            wanted = [box((*objects[0], 2), (*objects[1], 0)), box(), box(), box()]
            teacher.propose = lambda prediction: [b[:n] for b, n in zip(propose(prediction), counts[part])]
        for _ in range(2):
            step = Step(images[part], wanted[part], teacher, teacher(images[part]), student, student(images[part]))
            value = torch.stack(list(term(step).values())).sum()
        parameters = [p for module in (student, term) for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        flat = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, gradients)])
        state = {k: v for k, v in term.state_dict().items() if "queue" in k}
        found[name] = {"value": value.detach(), "gradient": flat, "metrics": step.metrics, "queue": state}
    return found

dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
both = results(slice(2 * rank, 2 * rank + 2))
dist.destroy_process_group()
torch.save({"half": both, "whole": results(slice(0, 4)) if rank == 0 else {}}, out)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    files = [folder / f"{rank}.pt" for rank in range(2)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(TESTS), str(rank), (folder / "meet").as_uri(), str(file)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank, file in enumerate(files)
    ]
    try:
        assert [process.wait(timeout=600) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.slow
def test_the_mean_over_two_processes_is_the_joined_batch(found: list[dict[str, Any]]) -> None:
    first, second, whole = found[0]["half"], found[1]["half"], found[0]["whole"]
    assert whole
    for name, joined in whole.items():
        assert joined["value"] > 0, name
        assert joined["gradient"].abs().max() > 0, name
        for what in ("value", "gradient"):
            mean = (first[name][what] + second[name][what]) / 2
            scale = joined[what].abs().max().item()
            torch.testing.assert_close(mean, joined[what], rtol=1e-6, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}")  # type: ignore[misc]
        for metric, value in joined["metrics"].items():
            torch.testing.assert_close((first[name]["metrics"][metric] + second[name]["metrics"][metric]) / 2, value)


@pytest.mark.slow
def test_queues_are_equal_on_both_and_those_of_the_joined_batch(found: list[dict[str, Any]]) -> None:
    for pair, boxes in (("contrastive", 15), ("contrastive_dense", None)):
        first, second, whole = (of[pair]["queue"] for of in (found[0]["half"], found[1]["half"], found[0]["whole"]))
        assert first.keys() == second.keys() == whole.keys() != set()
        place, filled = whole["queues.0._extra_state"].tolist()
        assert place == filled > 0
        assert boxes is None or filled == 2 * boxes  # put in twice
        for name, value in whole.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value)
