"""The wheel, away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run("-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(CHECKOUT), cwd=folder)
    # only this: a build that fails for another reason names hatchling in its traceback too
    if "No matching distribution found for hatchling" in built.stderr and "CI" not in os.environ:
        pytest.skip(f"no network to fetch hatchling from, which builds the wheel: {built.stderr[-300:]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("detkd-*.whl")
    installed = run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_configuration_and_teacher_and_no_tests(site: Path) -> None:
    (wheel,) = site.parent.glob("detkd-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {str(p.relative_to(CHECKOUT)) for p in (CHECKOUT / "conf").rglob("*.yaml")}
    assert {f"detkd/{name}" for name in ours} <= names
    assert "detkd/assets/scenes_teacher.safetensors" in names
    assert not [name for name in names if "tests" in name.split("/") or "__pycache__" in name]
    assert wheel.stat().st_size < 4e6


@pytest.mark.slow
def test_it_inverts_the_built_in_teacher_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    quick = ["n_images=2", "batch_size=2", "iterations=3", "callbacks=none", "logger=none", "trainer.accelerator=cpu"]
    done = run("-m", "detkd.invert", *quick, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "invert").iterdir()
    assert json.loads((folder / "results.json").read_text())["images"] == 2
    where = "import detkd, detkd.runtime.run as r; print(detkd.__file__, r.config_dir())"
    package, conf = run("-c", where, cwd=tmp_path, PYTHONPATH=str(site)).stdout.split()
    assert Path(package) == site / "detkd" / "__init__.py"
    assert Path(conf) == site / "detkd" / "conf"
