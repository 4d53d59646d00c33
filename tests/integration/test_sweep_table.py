"""Sweeps that end with a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
SWEEP = """# @package _global_
hydra:
  sweep: {subdir: "${optimizer.lr}"}
  sweeper:
    params:
      optimizer.lr: 0.001,0.002
  callbacks:
    table:
      _target_: detkd.runtime.sweep_table.WriteTable
      row_key: optimizer.lr
      column_key: steps
      value: steps
      rows: [0.001, 0.002, 0.003]
      plot: lines
"""
# the second training of this process breaks off as a fault of the program would make it
BREAKS = """
import lightning
fit, calls = lightning.Trainer.fit, []
def breaks(*given, **named):
    calls.append(1)
    if len(calls) == 2:
        raise RuntimeError("broke off")
    return fit(*given, **named)
lightning.Trainer.fit = breaks
"""


@pytest.fixture
def sweep(tiny_distill: list[str], images: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "conf/sweep").mkdir(parents=True)
    (tmp_path / "conf/sweep/small.yaml").write_text(SWEEP)
    return ["--config-dir=conf", "-m", "+sweep=small", *tiny_distill, "out=sweep", f"data.root={images}", "steps=1"]


def rows(folder: Path) -> list[str]:
    return (folder / "sweep/table.md").read_text().splitlines()[2:5]


def test_a_job_that_breaks_off_is_a_hole_and_the_sweep_goes_on(command: Command, sweep: list[str], tmp_path: Path) -> None:
    failed = command("distill", *sweep, cwd=tmp_path, before=BREAKS)
    assert failed.status == 1
    assert "RuntimeError: broke off" in failed.stderr
    assert rows(tmp_path) == ["| 0.001 | 1.000 (1) |", "| 0.002 | – (1 unfinished) |", "| 0.003 | – |"]
    assert rows(tmp_path)[1] in failed.stdout
    picture = (tmp_path / "sweep/table.png").read_bytes()
    command("distill", *sweep, cwd=tmp_path).ok()
    assert rows(tmp_path)[1] == "| 0.002 | 1.000 (1) |"
    assert (tmp_path / "sweep/table.png").read_bytes() != picture
    (tmp_path / "sweep/table.md").unlink()
    again = command("distill", *sweep, "+hydra.callbacks.table.digits=0", cwd=tmp_path).ok()
    assert again.stdout.count("has its results already") == 2
    assert rows(tmp_path)[1] == "| 0.002 | 1 (1) |"
    assert rows(tmp_path)[1] in again.stdout


def test_the_mistake_of_a_job_is_the_error_of_the_sweep(command: Command, sweep: list[str], tmp_path: Path) -> None:
    done = command("distill", *sweep, "hydra.callbacks.table.plot=pie", cwd=tmp_path)
    assert "hydra.callbacks.table.plot: expected one of ['dots', 'lines', 'none'], found 'pie'" in done.error()
    assert not list((tmp_path / "sweep").iterdir())
    done = command("distill", *sweep, "ema_decay=0.5,2", "hydra.sweep.subdir=${ema_decay}", cwd=tmp_path)
    assert "decay" in done.error()
    assert rows(tmp_path) == ["| 0.001 | 1.000 (1) |", "| 0.002 | – |", "| 0.003 | – |"]


def test_results_without_the_value_fail_a_sweep_at_its_end(command: Command, sweep: list[str], tmp_path: Path) -> None:
    done = command("distill", *sweep, "optimizer.lr=0.001", "hydra.callbacks.table.value=ap51", cwd=tmp_path)
    assert "expected results with 'ap51', found" in done.error()
    assert (tmp_path / "sweep/0.001/results.json").is_file()


@pytest.mark.slow
def test_of_two_processes_the_first_writes(python: Command, sweep: list[str], tmp_path: Path) -> None:
    done = python("distill", *sweep, "trainer.devices=2", cwd=tmp_path).ok()
    assert rows(tmp_path)[:2] == ["| 0.001 | 1.000 (1) |", "| 0.002 | 1.000 (1) |"]
    assert done.stdout.count("table.md:") == 1
