from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detkd.runtime.plotting import file_name
from detkd.runtime.stale import clear, listed


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_pictures_that_the_results_list_go_and_all_else_stays(tmp_path: Path) -> None:
    gone = ["pictures/001_a_b.png", f"pictures/{file_name(1203, 'x')}", "sizes_001_b.png", "classes/001_a.png"]
    stays = ["pictures/002_mine.png", "pictures/000005.png", "classes_001_b.png", "config.yaml"]
    write(tmp_path, [*gone, *stays])
    results = listed(tmp_path, [tmp_path / name for name in [*gone, "other/003_was_removed.png"]])
    (tmp_path / "results.json").write_text(json.dumps(results))
    clear(tmp_path)
    assert files(tmp_path) == set(stays)
    assert not (tmp_path / "classes").exists()
    clear(tmp_path)
    assert files(tmp_path) == set(stays)


def test_a_folder_that_never_held_a_run_keeps_its_files(tmp_path: Path) -> None:
    mine = ["pictures/000005.png", "sizes_001_a.png"]
    write(tmp_path, mine)
    clear(tmp_path)
    assert files(tmp_path) == set(mine)


@pytest.mark.parametrize(
    "content",
    ["", "[]", {}, {"pictures": None}, {"pictures": "001.png"}, {"pictures": [1, "../001_a.png", "a/../001.png", "b.png"]}],
)
def test_results_that_list_nothing_of_the_run(tmp_path: Path, content: Any) -> None:
    run = tmp_path / "run"
    mine = ["001_a.png", "run/001.png", "run/b.png"]
    write(tmp_path, mine)
    (run / "a").mkdir()
    (run / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    clear(run)
    assert files(tmp_path) == set(mine)
    assert (run / "a").is_dir()


def test_a_linked_folder_loses_the_pictures_and_stays_linked(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pictures").symlink_to(tmp_path / "disk")
    write(tmp_path, ["disk/001_a.png"])
    (tmp_path / "run" / "results.json").write_text(json.dumps({"pictures": ["pictures/001_a.png"]}))
    clear(tmp_path / "run")
    assert files(tmp_path) == set()
    assert (tmp_path / "run" / "pictures").is_symlink()
    assert (tmp_path / "disk").is_dir()
