"""The demo in miniature, as a newcomer runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_runs_in_miniature(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "detkd.demo", "--quick", "--out", "runs/demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "runs/demo/results.json").read_text())
    assert set(results) == {"teacher_ap50", "student_ap50", "noise_ap50", "ratio", "seconds"}
    assert results["teacher_ap50"] > 0.9
    assert results["ratio"] == results["student_ap50"] / results["teacher_ap50"]
    page = (tmp_path / "runs/demo/results.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert f"{results['teacher_ap50']:.3f}" in page
    assert "http" not in page
