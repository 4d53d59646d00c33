from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from detkd.data.store import open_store

Command = Callable[..., Any]
Files = Callable[[Path], dict[str, bytes]]


def test_each_job_of_a_sweep_has_a_folder_of_its_own(command: Command, tiny: list[str], tmp_path: Path) -> None:
    command("invert", "-m", *tiny, "loss.bn_stats.form=l2,kl", "seed=0,1", "out=sweep", cwd=tmp_path).ok()
    jobs = sorted(p for p in (tmp_path / "sweep").iterdir() if p.is_dir())
    assert [p.name for p in jobs] == ["0", "1", "2", "3"]
    found = []
    for job in jobs:
        config = OmegaConf.load(job / "config.yaml")
        found.append((config.loss.bn_stats.form, config.seed))
        assert json.loads((job / "results.json").read_text())["images"] == 6
        assert open_store(job, verify=True).seed == config.seed
    assert found == [("l2", 0), ("l2", 1), ("kl", 0), ("kl", 1)]
    images = [(job / "shards/000000/000000.png").read_bytes() for job in jobs]
    assert len(set(images)) == 4


def test_a_job_of_a_sweep_makes_what_the_command_makes(
    command: Command, tiny: list[str], images: Path, tmp_path: Path, files_of: Files
) -> None:
    command("invert", "-m", *tiny, "seed=1,0", "out=sweep", cwd=tmp_path).ok()
    assert files_of(tmp_path / "sweep" / "1" / "shards") == files_of(images / "shards")


def test_independent_jobs_share_one_folder(
    command: Command, tiny: list[str], images: Path, tmp_path: Path, files_of: Files
) -> None:
    command("invert", "-m", *tiny, "worker=0,1", "hydra.sweep.subdir=.", "out=set", cwd=tmp_path).ok()
    assert files_of(tmp_path / "set" / "shards") == files_of(images / "shards")
    assert open_store(tmp_path / "set", verify=True)


def test_a_mistake_in_a_sweep_ends_it_with_its_message(command: Command, tiny: list[str], tmp_path: Path) -> None:
    message = command("invert", "-m", *tiny, "loss.bn_stats.form=kl,l3", "out=sweep", cwd=tmp_path).error()
    assert "bn_stats.form: expected one of ['kl', 'l2'], got 'l3'" in message
    assert open_store(tmp_path / "sweep" / "0")


def test_a_sweep_of_distillations_goes_on_where_it_was_cut_off(
    command: Command, tiny_distill: list[str], images: Path, tmp_path: Path
) -> None:
    sweep = ["optimizer.lr=0.001,0.002", "out=sweep", f"data.root={images}", "steps=2"]
    command("distill", "-m", *tiny_distill, *sweep, cwd=tmp_path).ok()
    kept, lost = (tmp_path / "sweep" / job for job in ("0", "1"))
    (lost / "results.json").unlink()
    (lost / "student.safetensors").unlink()
    short = command("distill", "-m", *tiny_distill, *sweep, "trainer.max_steps=1", cwd=tmp_path).ok()
    assert "has its results already" not in short.stdout  # a smaller training is another one
    command("distill", "-m", *tiny_distill, *sweep, cwd=tmp_path).ok()
    (lost / "results.json").unlink()
    before = (kept / "student.safetensors").stat().st_mtime_ns
    again = command("distill", "-m", *tiny_distill, *sweep, cwd=tmp_path).ok()
    assert again.stdout.count("has its results already") == 1
    assert (kept / "student.safetensors").stat().st_mtime_ns == before
    assert (lost / "student.safetensors").is_file()
    message = command("distill", "-m", *tiny_distill, *sweep, "ema_decay=0.5", cwd=tmp_path).error()
    assert "keys that differ: ['ema_decay']" in message


@pytest.mark.slow
def test_a_sweep_in_two_processes_is_the_sweep_in_one(
    python: Command, tiny: list[str], tmp_path: Path, files_of: Files
) -> None:
    python("invert", "-m", *tiny, "seed=0,1", "out=one", cwd=tmp_path).ok()
    python("invert", "-m", *tiny, "seed=0,1", "out=two", "trainer.devices=2", cwd=tmp_path).ok()
    assert [p.name for p in sorted((tmp_path / "two").iterdir()) if p.is_dir()] == ["0", "1"]
    for job in ("0", "1"):
        one, two = tmp_path / "one" / job, tmp_path / "two" / job
        assert files_of(two / "shards") == files_of(one / "shards")
        assert (two / "manifest.json").read_bytes() == (one / "manifest.json").read_bytes()
        assert json.loads((two / "results.json").read_text())["images"] == 6


@pytest.mark.slow
def test_a_sweep_of_distillations_in_two_processes(
    python: Command, tiny_distill: list[str], images: Path, tmp_path: Path
) -> None:
    sweep = ["optimizer.lr=0.001,0.002", "out=sweep", "trainer.devices=2", f"data.root={images}"]
    python("distill", "-m", *tiny_distill, *sweep, cwd=tmp_path).ok()
    rates = [OmegaConf.load(tmp_path / "sweep" / job / "config.yaml").optimizer.lr for job in ("0", "1")]
    assert rates == [0.001, 0.002]
    assert all((tmp_path / "sweep" / job / "student.safetensors").is_file() for job in ("0", "1"))
