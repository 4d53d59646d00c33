"""Two processes on the CPU (gloo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkd.data.store import open_store
from detkd.detectors.checkpoint import load_checkpoint

Command = Callable[..., Any]
Files = Callable[[Path], dict[str, bytes]]


def test_two_processes_write_the_set_of_one_byte_for_byte(
    python: Command, command: Command, tiny: list[str], tmp_path: Path, files_of: Files
) -> None:
    more = [*tiny, "n_images=10"]  # batches of 4, 4 and 2: one process has two of them
    command("invert", *more, "out=one", cwd=tmp_path).ok()
    python("invert", *more, "trainer.devices=2", "out=two", cwd=tmp_path).ok()
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    for files in (one, two):
        del files["config.yaml"]  # says on how many devices
        results = json.loads(files.pop("results.json"))
        assert results["images"] == 10
    assert {"instances.json", "manifest.json", "shards/000000/000003.png", "shards/000002/000001.png"} <= set(one)
    assert one == two
    assert open_store(tmp_path / "two", verify=True).n_shards == 3


def test_a_distillation_in_two_processes(python: Command, tiny_distill: list[str], images: Path, tmp_path: Path) -> None:
    done = python("distill", *tiny_distill, "trainer.devices=2", f"data.root={images}", "out=run", cwd=tmp_path).ok()
    assert load_checkpoint(tmp_path / "run" / "student.safetensors")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 4
    assert done.stdout.count("student: ") == 1  # said once, by the first process


@pytest.mark.slow
def test_a_loss_that_does_not_reach_the_heads_in_two_processes(
    python: Command, tiny_distill: list[str], images: Path, tmp_path: Path
) -> None:
    features = ["loss=[feature_l2]", "trainer.devices=2", f"data.root={images}"]
    python("distill", *tiny_distill, *features, "out=run", cwd=tmp_path).ok()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 4


@pytest.mark.slow
def test_a_mistake_in_two_processes_ends_both_with_one_message(python: Command, tiny: list[str], tmp_path: Path) -> None:
    message = python("invert", *tiny, "trainer.devices=2", "loss.bn_stats.form=l3", "out=out", cwd=tmp_path).error()
    assert "bn_stats.form" in message
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_more_processes_than_batches(python: Command, tiny: list[str], images: Path, tmp_path: Path, files_of: Files) -> None:
    python("invert", *tiny, "batch_size=6", "trainer.devices=2", "out=two", cwd=tmp_path).ok()
    python("invert", *tiny, "batch_size=6", "out=one", cwd=tmp_path).ok()
    assert files_of(tmp_path / "one" / "shards") == files_of(tmp_path / "two" / "shards")


@pytest.mark.slow
def test_the_same_command_twice_at_once_shares_the_work(
    command: Command, tiny: list[str], tmp_path: Path, files_of: Files
) -> None:
    more = [*tiny, "n_images=24", "batch_size=2", "iterations=30"]
    arguments = [sys.executable, "-m", "detkd.invert", *more, "out=shared"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    runs = [
        subprocess.Popen(
            [*arguments, f"worker={i}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for i in range(2)
    ]
    for run in runs:
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0, output.decode()
    command("invert", *more, "out=alone", cwd=tmp_path).ok()
    assert files_of(tmp_path / "shared" / "shards") == files_of(tmp_path / "alone" / "shards")
    assert (tmp_path / "shared" / "manifest.json").read_bytes() == (tmp_path / "alone" / "manifest.json").read_bytes()
    assert not (tmp_path / "shared" / ".claims").exists()
