"""Commands as a user types them, and small detectors for them to work on."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from detkd.detectors.checkpoint import save_checkpoint
from detkd.detectors.darknet.detector import yolov3_tiny

CLASSES = ("circle", "square", "cross")
ANCHORS = [[6, 6], [9, 9], [12, 12], [20, 20], [28, 28], [40, 40]]

# Imports what the commands import, once, and runs each command in a fork of itself: the same as `python -m`, without the seconds
# that the imports take.
SERVER = """
import json, os, runpy, signal, sys, traceback
import detkd.data.scenes, detkd.distillation.module, detkd.inversion.pictures, detkd.inversion.writer
import detkd.runtime.build, detkd.runtime.data, detkd.runtime.store, torchmetrics.detection, lightning.pytorch.loggers
for line in sys.stdin:
    job = json.loads(line)
    if (pid := os.fork()) == 0:
        signal.alarm(job["timeout"])
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in ((1, job["stdout"]), (2, job["stderr"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        status, sys.argv = 0, [job["module"], *job["arguments"]]
        try:
            exec(job["before"], {})
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONHASHSEED": "0"}


class Done(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    def ok(self) -> Done:
        """Itself; fails, showing what it printed, where it did not succeed."""
        assert self.status == 0, self.stdout + self.stderr
        return self

    def error(self) -> str:
        """What it says of the user's mistake; fails where it says more or less than one message, or leaves with another status than 2."""
        assert self.status == 2, self.stdout + self.stderr
        assert "Traceback" not in self.stdout + self.stderr
        messages = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(messages) == 1, self.stderr
        return self.stderr[self.stderr.index("error: ") :]


Command = Callable[..., Done]


@pytest.fixture(scope="session")
def _server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="session")
def command(_server: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run `python -m detkd.<name> arguments...` in the folder ``cwd``: command("invert", "seed=1", cwd=tmp_path).

    before: Python that the process runs first.
    """
    folder = tmp_path_factory.mktemp("output")

    def run(
        name: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout: int = 120, before: str = ""
    ) -> Done:
        job = {
            "module": f"detkd.{name}",
            "before": before,
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd),
            "env": env or {},
            "timeout": timeout,
            "stdout": str(folder / "stdout"),
            "stderr": str(folder / "stderr"),
        }
        assert _server.stdin is not None
        assert _server.stdout is not None
        _server.stdin.write(json.dumps(job) + "\n")
        _server.stdin.flush()
        assert select.select([_server.stdout], [], [], timeout + 60)[0], f"no answer to {job}"
        status = int(_server.stdout.readline())
        return Done(status, (folder / "stdout").read_text(), (folder / "stderr").read_text())

    return run


@pytest.fixture(scope="session")
def python() -> Command:
    """The same in a Python of its own, as `python -m` does it: for what starts further processes or ends with them."""

    def run(name: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout: int = 300) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", f"detkd.{name}", *map(str, arguments)],
            cwd=cwd,
            env=os.environ | ENVIRONMENT | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


def _detector(width: float, classes: tuple[str, ...] = CLASSES, size: int = 32, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return yolov3_tiny(classes, (size, size), "stretch", width, ANCHORS)


@pytest.fixture(scope="session")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of random YOLOv3-tiny at 32 px: teacher, other (weights), student (narrower), classes (one differs), wide (one more)."""
    folder = tmp_path_factory.mktemp("detectors")
    made = {
        "teacher": _detector(0.125),
        "other": _detector(0.125, seed=1),
        "student": _detector(0.0625, seed=2),
        "classes": _detector(0.0625, (*CLASSES[:2], "star")),
        "wide": _detector(0.0625, (*CLASSES, "star")),
    }
    for name, detector in made.items():
        save_checkpoint(detector, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny(detectors: Path) -> list[str]:
    """Arguments of an inversion that takes a second: 6 images in batches of 4 and 2."""
    return [
        "teacher=checkpoint",
        f"teacher.path={detectors / 'teacher.safetensors'}",
        "n_images=6",
        "batch_size=4",
        "resolution=32",
        "iterations=4",
        "look_every=2",
        "callbacks=none",
        "logger=none",
        "trainer.accelerator=cpu",
    ]


@pytest.fixture(scope="session")
def tiny_distill(detectors: Path) -> list[str]:
    """Arguments of a distillation that takes a second: 4 steps of 2 images; no data yet."""
    return [
        "teacher=checkpoint",
        f"teacher.path={detectors / 'teacher.safetensors'}",
        "student=checkpoint",
        f"student.path={detectors / 'student.safetensors'}",
        "batch_size=2",
        "steps=4",
        "val_every=2",
        "warmup_steps=1",
        "callbacks=none",
        "logger=none",
        "trainer.accelerator=cpu",
    ]


@pytest.fixture(scope="session")
def images(command: Command, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set made by `python -m detkd.invert`; not to be written to."""
    folder = tmp_path_factory.mktemp("inverted")
    command("invert", *tiny, "out=set", cwd=folder).ok()
    return folder / "set"


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """All files below a folder, by relative name."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
