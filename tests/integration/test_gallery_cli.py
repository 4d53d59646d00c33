"""python -m detkd.gallery, as it is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., Any]


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gallery.js").read_text().removeprefix("window.detkdGallery=").rstrip(";\n"))


def test_it_writes_into_the_set_by_default(command: Command, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "set", ignore=shutil.ignore_patterns("gallery"))
    done = command("gallery", "data.root=set", cwd=tmp_path).ok()
    page = tmp_path / "set" / "gallery" / "index.html"
    assert done.stdout.strip() == f"open {page}"
    assert page.is_file()
    found = told(page.parent)
    assert len(found["files"]) == 6
    teacher_ap50 = json.loads((tmp_path / "set" / "results.json").read_text())["teacher_ap50"]
    assert ["teacher AP50", teacher_ap50] in found["facts"]["numbers"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # no folder of a run


def test_it_writes_elsewhere(command: Command, images: Path, tmp_path: Path, files_of: Callable[[Path], Any]) -> None:
    before = files_of(images)
    command("gallery", f"data.root={images}", "out=pages/here", cwd=tmp_path).ok()
    folder = tmp_path / "pages" / "here"
    assert sorted(p.name for p in folder.iterdir()) == ["gallery.js", "index.html"]
    assert (folder / told(folder)["root"] / "shards" / "000000" / "000000.png").is_file()
    assert files_of(images) == before


def test_mistakes_are_one_message(command: Command, images: Path, tmp_path: Path) -> None:
    assert "data.root: expected the folder of a complete set" in command("gallery", cwd=tmp_path).error()
    assert "expected the manifest of a store" in command("gallery", "data.root=nowhere", cwd=tmp_path).error()
    (tmp_path / "file").write_text("")
    assert "expected a folder to write to" in command("gallery", f"data.root={images}", "out=file", cwd=tmp_path).error()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
