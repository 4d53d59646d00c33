from __future__ import annotations

from pathlib import Path

from detkd.runtime.plotting import file_name
from detkd.runtime.stale import clear


def test_what_a_command_numbered_goes_and_all_else_stays(tmp_path: Path) -> None:
    gone = ["results.json", "pictures/001_a_b.png", "pictures/002.png", f"pictures/{file_name(1203, 'x')}", "sizes_001_b.png"]
    stays = ["pictures/cat.png", "pictures/001.jpg", "sizes_b.png", "classes_001_b.png", "config.yaml", "other/001_a.png"]
    only = ["classes/001_a.png"]
    for name in [*gone, *stays, *only]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    clear(tmp_path, ("pictures/", "sizes_", "classes/", "nowhere/"))
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == set(stays)
    assert not (tmp_path / "classes").exists()
    clear(tmp_path)
    assert left == {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
