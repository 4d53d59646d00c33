"""python -m detkd.report, as it is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs scored on the same boxes, one of them in a folder with a quote and a space, and a damaged one."""
    for name, ap50 in (("a", 0.25), ("b 'c' <i>", 0.5)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("teacher: {path: x}\ndata: {root: d}\n")
        (folder / "results.json").write_text(json.dumps({"ap50": ap50, "images": 2, "scored_sha256": "0" * 64}))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.yaml").write_text("a: [")
    return tmp_path / "runs"


def test_a_report_names_what_it_could_not_read(runs: Path, command: Command, tmp_path: Path) -> None:
    done = command("report", f"runs=[{runs}]", "out=my report", cwd=tmp_path).ok()
    out = tmp_path / "my report"
    assert sorted(p.name for p in out.iterdir()) == ["report.csv", "report.html", "report.json", "report.md"]
    assert done.stdout.strip() == f"open {out / 'report.html'}"
    assert "warning: broken: " in done.stderr
    found = json.loads((out / "report.json").read_text())
    assert [run["name"] for run in found["runs"]] == ["a", "b 'c' <i>"]
    assert len(found["not_read"]) == 1
    assert [row[3] for table in found["tables"] if table["title"].startswith("Scores on") for row in table["rows"]] == [
        0.25,
        0.5,
    ]
    assert "b 'c' &lt;i&gt;" in (out / "report.html").read_text().replace("&#x27;", "'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my report", "runs"]  # no folder of a run


def test_one_folder_needs_no_list(runs: Path, command: Command, tmp_path: Path) -> None:
    command("report", f"runs={runs / 'a'}", "out=out", "title=Mine", cwd=tmp_path).ok()
    assert "<title>Mine</title>" in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_in_bytes_of_no_encoding(runs: Path, command: Command, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"b\xff")
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    runs.rename(odd / "runs")
    done = command("report", "runs=runs", "out=out", cwd=odd).ok()
    assert done.stdout.strip() == f"open {tmp_path}/b?/out/report.html"
    assert 'href="../runs/a"' in (odd / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs: expected folders of runs, like 'runs=[runs/a,runs/b]', found none"),
        (["runs=[]"], "runs: expected folders of runs"),
        (["runs=nowhere"], "runs: expected folders of runs, found no folder 'nowhere'"),
        (["runs=runs/broken"], "runs: expected at least one run that can be read, found none"),
        (["runs=runs/a", "images=-1"], "images: expected how many images"),
    ],
)
def test_mistakes(runs: Path, command: Command, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in command("report", *arguments, "out=out", cwd=tmp_path).error()
    assert not (tmp_path / "out").exists()
