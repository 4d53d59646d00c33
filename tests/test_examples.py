"""The examples run, as a user would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from detkd.data.store import open_store
from detkd.runtime.build import build_detector, build_loss
from detkd.runtime.run import config_dir

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str, cwd: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_detector_is_inverted(tmp_path: Path) -> None:
    out = run("own_detector.py", str(tmp_path / "set"), cwd=tmp_path)
    before, after = (float(word) for word in out.split("loss ")[1].split(";")[0].split(" -> "))
    assert after < before
    assert len(open_store(tmp_path / "set", verify=True)) == 4


def test_own_loss_has_a_value_and_a_gradient(tmp_path: Path) -> None:
    out = run("own_loss.py", cwd=tmp_path)
    assert "0.5 x saturation 0." in out
    assert float(out.split("gradient at the pixels: ")[1]) > 0


@pytest.fixture
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.usefixtures("examples_on_path")
def test_own_loss_is_built_from_the_command_line_and_from_a_file() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        by_key = compose("invert", ["+loss.saturation._target_=own_loss.Saturation", "+loss.saturation.weight=0.5"])
        by_file = compose("invert", [f"hydra.searchpath=[file://{EXAMPLES / 'conf'}]", "loss=[detection,tv,saturation]"])
    assert build_loss(by_key.loss).weights == {"detection": 1.0, "bn_stats": 1.0, "tv": 2.0, "saturation": 0.5}
    assert build_loss(by_file.loss).weights == {"detection": 1.0, "tv": 2.0, "saturation": 0.5}


@pytest.mark.usefixtures("examples_on_path")
def test_own_detector_is_built_from_the_command_line() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("invert", ["teacher=checkpoint", "teacher._target_=own_detector.build", "teacher.path=null"])
    detector = build_detector(config.teacher, "teacher")
    assert detector is not None
    assert detector.spec.classes == ("cat", "dog")
