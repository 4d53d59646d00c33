from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Command = Callable[..., Any]


@pytest.fixture
def arguments(detectors: Path, images: Path) -> list[str]:
    return ["teacher=checkpoint", f"teacher.path={detectors / 'teacher.safetensors'}", f"data.root={images}", "out=run"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_and_tables_of_students_side_by_side(
    arguments: list[str], detectors: Path, command: Command, tmp_path: Path
) -> None:
    teacher, other = (detectors / f"{name}.safetensors" for name in ("teacher", "other"))
    command("features", *arguments, f"students=[{teacher},{other}]", "data.length=4", "pictures=2", cwd=tmp_path).ok()
    folder = tmp_path / "run"
    pngs = {"channel_distance.png", "gradient_norm.png"}
    assert {p.name for p in folder.iterdir()} == pngs | {
        "channel_distance.csv",
        "gradient_norm.csv",
        "results.json",
        "config.yaml",
    }
    for name in pngs:
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
    distances = rows(folder / "channel_distance.csv")
    assert list(distances[0]) == ["student", "channel", "object", "background"]
    assert [row["student"] for row in distances] == sorted((row["student"] for row in distances), reverse=True)
    assert all(float(row["background"]) == 0 for row in distances if row["student"] == "teacher")
    assert all(float(row["background"]) > 0 for row in distances if row["student"] == "other")
    norms = rows(folder / "gradient_norm.csv")
    assert [(row["student"], row["level"]) for row in norms] == [(s, p) for s in ("teacher", "other") for p in ("p4", "p5")]
    results = json.loads((folder / "results.json").read_text())
    assert results["images"] == 4
    assert results["students"]["teacher"]["distance"]["background"] == 0
    assert results["students"]["other"]["level"] == "p4"


def test_one_student_and_students_by_name(arguments: list[str], detectors: Path, command: Command, tmp_path: Path) -> None:
    other = detectors / "other.safetensors"
    command("features", *arguments, f"students={other}", "data.length=1", "pictures=0", cwd=tmp_path).ok()
    assert not (tmp_path / "run" / "gradient_norm.png").exists()
    command("features", *arguments[:-1], f"students={{mine: {other}}}", "data.length=1", "out=named", cwd=tmp_path).ok()
    assert {row["student"] for row in rows(tmp_path / "named" / "gradient_norm.csv")} == {"mine"}


@pytest.mark.parametrize(
    ("students", "more", "message"),
    [
        (None, [], r"students: expected checkpoints, like students=\[a.safetensors,b.safetensors\], found none"),
        (["nowhere"], [], "nowhere"),
        (["other", "other"], [], "students: expected files of different names"),
        (["student"], [], r"expected maps 'p4' of \w+ and 'p4' of the teacher of one shape"),
        (["classes"], [], "students: expected the teacher's"),
        (["other"], ["level=p7"], r"level: expected a neck level .* one of \['p4', 'p5'\], found 'p7'"),
        (["other"], ["data.length=0"], "data.length: expected at least 1, found 0"),
        (["other"], ["data.root=null"], "data.root: expected a folder of images"),
        (["other"], ["data.num_workers=2"], "data.num_workers: expected 0"),
    ],
)
def test_mistakes(
    arguments: list[str],
    detectors: Path,
    command: Command,
    tmp_path: Path,
    students: list[str] | None,
    more: list[str],
    message: str,
) -> None:
    files = [] if students is None else [f"students=[{','.join(str(detectors / f'{name}.safetensors') for name in students)}]"]
    done = command("features", *arguments, *files, *more, cwd=tmp_path)
    assert re.search(message, done.error())
    assert not (tmp_path / "run" / "results.json").exists()
