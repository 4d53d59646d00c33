from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.coco import CocoDataset
from detkd.runtime.scored_run import data_facts

Command = Callable[..., Any]
NAMES = ["circle", "square <b>$x$</b>", "cross"]
FILES = ["a b.png", "\N{LATIN SMALL LETTER U WITH DIAERESIS}'\"<i>.png", "c&.png"]


def write_set(root: Path, first_box: int = 20) -> None:
    """Three images with names that need care; a crowd; the class cross has no box."""
    (root / "images").mkdir(parents=True)
    for file in FILES:
        Image.new("RGB", (64, 48), "grey").save(root / "images" / file)
    images = [{"id": 10 + k, "file_name": file, "width": 64, "height": 48} for k, file in enumerate(FILES)]
    rows = [
        (10, 1, [2, 2, first_box, 20], 0),
        (10, 2, [30, 5, 20, 30], 0),
        (11, 1, [0, 0, 40, 40], 0),
        (11, 1, [40, 0, 20, 20], 1),
    ]
    boxes = [{"id": k, "image_id": i, "category_id": c, "bbox": b, "iscrowd": w} for k, (i, c, b, w) in enumerate(rows, 1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def write_run(
    folder: Path, root: Path, detections: list[Any], names: list[str] = NAMES, on_unknown: str = "error", **results: Any
) -> None:
    """A run of evaluate as it lies on disk."""
    folder.mkdir(parents=True)
    OmegaConf.save({"data": {"root": str(root), "format": "folder", "on_unknown": on_unknown}}, folder / "config.yaml")
    (folder / "detections.json").write_text(json.dumps(detections))
    (folder / "results.json").write_text(json.dumps({"images": 3, "per_class": dict.fromkeys(names)} | results))


def found(image: int, category: int, bbox: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


CIRCLES = [found(10, 1, [2, 2, 20, 20], 0.9), found(11, 1, [0, 0, 40, 40], 0.8)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A baseline that finds a circle, "better" that finds all, "nothing"; a set of other boxes with a run "other"."""
    write_set(tmp_path / "set")
    write_run(tmp_path / "base", tmp_path / "set", [CIRCLES[0], found(10, 3, [30, 5, 20, 30], 0.7)])
    write_run(tmp_path / "better", tmp_path / "set", [*CIRCLES, found(10, 2, [30, 5, 20, 30], 0.7)], NAMES[::-1])
    write_run(tmp_path / "nothing", tmp_path / "set", [])
    write_set(tmp_path / "elsewhere", first_box=19)
    write_run(tmp_path / "other", tmp_path / "elsewhere", CIRCLES)
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_and_pictures_of_three(runs: Path, command: Command) -> None:
    command("compare", "runs=[base,better,nothing]", "out=out", "resamples=50", "pictures=2", cwd=runs).ok()
    out = runs / "out"
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    tables = {f"{name}.csv" for name in ("scores", "classes", "sizes", "curves", "calibration", "images")}
    figures = {"curves.png", "confidence.png", "calibration.png"}
    each = {f"{kind}_{name}.png" for kind in ("sizes", "classes") for name in ("001_better", "002_nothing")}
    pictures = {"pictures/001_a_b.png", "pictures/002_i.png"}
    assert files == {*tables, *figures, *each, *pictures, "results.md", "results.json", "config.yaml"}
    for name in (n for n in files if n.endswith(".png")):
        with Image.open(out / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 15  # something is drawn

    results = json.loads((out / "results.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["base", "better", "nothing"]
    base, better, nothing = (run["scores"]["ap"]["value"] for run in results["runs"])
    # the classes of better have another order; of circles the baseline finds one of two, of squares none
    assert [base, better, nothing] == pytest.approx([51 / 101 / 2, 1, 0])
    assert results["runs"][0]["differences"] is None
    assert results["runs"][1]["differences"]["ap"]["value"] == pytest.approx(better - base)
    assert results["runs"][1]["scores"]["ap_large"] == {"value": None, "low": None, "high": None}
    assert results["runs"][2]["d_ece"] is None
    assert (results["resamples"], results["seed"]) == (50, 0)

    images = rows(out / "images.csv")
    assert [(row["file"], row["change"]) for row in images] == [(FILES[0], "2"), (FILES[1], "2"), (FILES[2], "0")]
    assert images[0]["tp better"] == "2"
    assert [row["class"] for row in rows(out / "classes.csv")][:2] == NAMES[:2]
    assert "basic bootstrap, 50 draws of the images with replacement (seed 0)" in (out / "results.md").read_text()


def test_runs_by_name_and_the_same_numbers_each_time(runs: Path, command: Command) -> None:
    for out in ("a", "b"):
        command("compare", "runs={one: base, two: better}", f"out={out}", "resamples=20", "pictures=0", cwd=runs).ok()
    assert [row["run"] for row in rows(runs / "a" / "scores.csv")] == ["one"] * 6 + ["two"] * 6
    first, second = (json.loads((runs / out / "results.json").read_text())["runs"] for out in ("a", "b"))
    assert first == second
    for file in ("scores.csv", "classes.csv", "sizes_001_two.png"):
        assert (runs / "a" / file).read_bytes() == (runs / "b" / file).read_bytes()
    assert not (runs / "a" / "pictures").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"runs: expected two or more folders, like 'runs=\[runs/a,runs/b\]', found 0"),
        (["runs=base"], "runs: expected two or more folders, .* found 1"),
        (["runs=[base,base]"], "runs: expected folders of different names"),
        (["runs=[base,nowhere]"], "nowhere: expected the folder of a run"),
        (
            ["runs=[base,other]"],
            "runs: expected runs on one data set, found base .* and other .*: the boxes of image 10 differ",
        ),
        (["runs=[base,better]", "resamples=0"], "resamples: expected a whole number of at least 1, found 0"),
        (["runs=[base,better]", "pictures=-1"], "pictures: expected a whole number of at least 0"),
        (["runs=[base,better]", "score_threshold=1.5"], r"score_threshold: expected a number in \[0, 1\), found 1.5"),
    ],
)
def test_mistakes(runs: Path, command: Command, arguments: list[str], message: str) -> None:
    assert re.search(message, command("compare", *arguments, "out=out", cwd=runs).error())
    assert not (runs / "out" / "config.yaml").exists()


def test_sets_of_other_images_and_without_a_box(runs: Path, command: Command) -> None:
    path = runs / "elsewhere" / "instances.json"
    content = json.loads(path.read_text())
    content["images"][2]["id"] = 99
    path.write_text(json.dumps(content))
    message = command("compare", "runs=[base,other]", "out=out", cwd=runs).error()
    assert "3 and 3 images, 2 of them in both" in message
    path = runs / "set" / "instances.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    assert "at least one box" in command("compare", "runs=[base,better]", "out=out", cwd=runs).error()
    assert not (runs / "out" / "config.yaml").exists()


def test_a_detector_of_fewer_classes_is_compared_on_those_that_both_know(runs: Path, command: Command) -> None:
    squares = [found(10, 2, [30, 5, 20, 30], 0.7), found(12, 2, [0, 0, 9, 9], 0.6)]
    write_run(runs / "all", runs / "set", [CIRCLES[0], *squares])
    write_run(runs / "few", runs / "set", CIRCLES, ["star", "circle"], on_unknown="drop")
    done = command("compare", "runs=[all,few]", "out=out", "resamples=20", "pictures=1", cwd=runs).ok()
    out = runs / "out"
    results = json.loads((out / "results.json").read_text())
    assert (results["classes"], results["classes_left_out"]) == (["circle"], [NAMES[1]])
    said = "Scored on the classes that all detectors know (1), without boxes of square"
    assert results["notes"][0].startswith(said)
    assert said in done.stdout
    assert f"{said} &lt;b>" in (out / "results.md").read_text()
    ap = {run["name"]: run["scores"]["ap"]["value"] for run in results["runs"]}
    assert ap == pytest.approx({"all": 51 / 101, "few": 1})  # of circles alone: squares are neither found nor missed
    assert {row["class"] for row in rows(out / "classes.csv")} == {"circle"}
    assert {row["fp all"] for row in rows(out / "images.csv")} == {"0"}


def test_results_say_what_was_read(runs: Path, command: Command) -> None:
    dataset = CocoDataset(runs / "set", classes=tuple(NAMES), image_size=(32, 32), resize="stretch")
    facts = data_facts(dataset, NAMES)
    hashes: dict[str, Any] = {"detector_sha256": "1" * 64} | {key: facts[key] for key in ("scored_sha256", "images_sha256")}
    write_run(runs / "known", runs / "set", CIRCLES, **hashes)
    command("compare", "runs=[base,known]", "out=out", "resamples=20", "pictures=0", cwd=runs).ok()
    base, known = json.loads((runs / "out" / "results.json").read_text())["runs"]
    of_file = {name: hashlib.sha256((runs / name / "detections.json").read_bytes()).hexdigest() for name in ("base", "known")}
    assert {key: known[key] for key in [*hashes, "detections_sha256"]} == hashes | {"detections_sha256": of_file["known"]}
    assert {key: base[key] for key in [*hashes, "detections_sha256"]} == dict.fromkeys(hashes) | {
        "detections_sha256": of_file["base"]
    }


def test_a_comparison_that_is_repeated_leaves_nothing_of_the_one_before(runs: Path, command: Command) -> None:
    arguments = ["runs=[base,better]", "out=out", "resamples=20", "pictures=2"]
    (runs / "out" / "pictures").mkdir(parents=True)
    (runs / "out" / "pictures" / "000005.png").write_bytes(b"")  # a user's, from before there was a run
    command("compare", *arguments, cwd=runs).ok()
    before = sorted(p.name for p in (runs / "out" / "pictures").iterdir())
    (runs / "base" / "detections.json").write_text(json.dumps([*CIRCLES, *[found(12, 1, [0, 0, 9, 9], 0.9)] * 3]))
    stopped = "import detkd.runtime.compare_output as o, os; o.curves_figure = lambda *_: os._exit(9)"
    assert command("compare", *arguments, cwd=runs, before=stopped).status == 9
    assert not (runs / "out" / "results.json").exists()  # what is left of a run that was cut off does not look finished
    command("compare", *arguments, cwd=runs).ok()
    after = sorted(p.name for p in (runs / "out" / "pictures").iterdir())
    assert before == ["000005.png", "001_a_b.png", "002_i.png"]
    assert after == ["000005.png", "001_c.png", "002_a_b.png"]


def test_a_file_name_that_is_not_utf_8(runs: Path, command: Command) -> None:
    name = os.fsdecode(b"\xff.png")
    try:
        (runs / "set" / "images" / FILES[0]).rename(runs / "set" / "images" / name)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    path = runs / "set" / "instances.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    command("compare", "runs=[base,better]", "out=out", "resamples=20", "pictures=2", cwd=runs).ok()
    assert {row["file"] for row in rows(runs / "out" / "images.csv")} == {"\\udcff.png", *FILES[1:]}
    assert (runs / "out" / "pictures" / "001_png.png").is_file() or (runs / "out" / "pictures" / "001.png").is_file()
