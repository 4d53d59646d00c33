"""kill -9 at any moment: the same command goes on, and the set is that of an uninterrupted run, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkd.data.progress import ProgressReader
from detkd.data.store import open_store

Command = Callable[..., Any]
Files = Callable[[Path], dict[str, bytes]]

# Kills its own process at the n-th thing that it does to a file: before it is done, or after.
DEADLY = """
import os, pathlib, shutil, signal
left, after = {count}, {after}
def deadly(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
os.replace, os.rename, os.rmdir, os.unlink = map(deadly, (os.replace, os.rename, os.rmdir, os.unlink))
for name in ("write_bytes", "mkdir", "rename", "unlink"):
    setattr(pathlib.Path, name, deadly(getattr(pathlib.Path, name)))
"""


def set_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """What belongs to the set and its outputs, without what says when, on what and how fast it was made."""
    return {n: c for n, c in files.items() if n not in ("config.yaml", "results.json", "metrics.csv")}


@pytest.mark.slow
def test_killed_at_thirty_file_operations(command: Command, tiny: list[str], tmp_path: Path, files_of: Files) -> None:
    more = [*tiny, "n_images=19", "batch_size=2", "iterations=2", "callbacks=invert", "callbacks.progress=null"]
    more += ["callbacks.pictures.every=1"]
    command("invert", *more, "out=whole", cwd=tmp_path).ok()
    draw, kills = random.Random(5), 0
    for attempt in range(200):
        # the first among the shards; the others anywhere, up to the card and the gallery of a set that is all but complete
        most = 24 if kills < 20 else 150
        before = DEADLY.format(count=draw.randint(1, most), after=draw.random() < 0.5) if kills < 30 else ""
        done = command("invert", *more, "out=killed", cwd=tmp_path, before=before)
        if done.status == 0:
            if kills >= 30:
                break
            # finished too early: take a shard away, as if it had not been written
            shard = draw.choice(sorted((tmp_path / "killed" / "shards").iterdir()))
            shard.rename(tmp_path / f"gone{attempt}")
            continue
        assert done.status == -signal.SIGKILL, done.stdout + done.stderr
        kills += 1
    assert kills >= 30
    killed = set_of(files_of(tmp_path / "killed"))
    assert killed == set_of(files_of(tmp_path / "whole"))
    open_store(tmp_path / "killed", verify=True)


@pytest.mark.slow
def test_two_processes_killed_at_random_times(command: Command, tiny: list[str], tmp_path: Path, files_of: Files) -> None:
    more = [*tiny, "n_images=31", "batch_size=2", "iterations=30", "look_every=10"]
    command("invert", *more, "out=whole", cwd=tmp_path).ok()
    arguments = [sys.executable, "-m", "detkd.invert", *more, "trainer.devices=2", "out=killed"]
    draw, kills = random.Random(7), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    shards = tmp_path / "killed" / "shards"
    for _ in range(20):
        process = subprocess.Popen(
            arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        had, deadline = count(shards), time.monotonic() + 120
        if kills < 6:
            # the start takes most of the time: wait for the first new shard, then a random while
            while count(shards) <= had and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.6))
        if kills < 6 and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            assert ProgressReader(tmp_path / "killed").read().damaged == 0
            continue
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output.decode()
        break
    assert kills >= 3
    assert set_of(files_of(tmp_path / "killed")) == set_of(files_of(tmp_path / "whole"))


def count(shards: Path) -> int:
    """Finished shards."""
    return len(list(shards.glob("[0-9]*"))) if shards.is_dir() else 0
