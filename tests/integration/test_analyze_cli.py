from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

Command = Callable[..., Any]
NAMES = ["circle", "square <b>$x$</b>", "cross"]


def write_set(root: Path, supercategories: bool = True) -> None:
    """Three images with names that need care; a crowd; the class cross has no box."""
    (root / "images").mkdir(parents=True)
    files = ["a b.png", "\N{LATIN SMALL LETTER U WITH DIAERESIS}'\"<i>.png", "c&.png"]
    for file in files:
        Image.new("RGB", (64, 48), "grey").save(root / "images" / file)
    images = [{"id": 10 + k, "file_name": file, "width": 64, "height": 48} for k, file in enumerate(files)]
    rows = [(10, 1, [2, 2, 20, 20], 0), (10, 2, [30, 5, 20, 30], 0), (11, 1, [0, 0, 40, 40], 0), (11, 1, [40, 0, 20, 20], 1)]
    boxes = [{"id": k, "image_id": i, "category_id": c, "bbox": b, "iscrowd": w} for k, (i, c, b, w) in enumerate(rows, 1)]
    categories = [
        {"id": k, "name": n} | ({"supercategory": "form/s"} if supercategories else {}) for k, n in enumerate(NAMES, 1)
    ]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def write_run(folder: Path, root: Path, detections: list[Any], **results: Any) -> None:
    """A run of evaluate as it lies on disk."""
    folder.mkdir(parents=True)
    OmegaConf.save({"data": {"root": str(root), "format": "folder", "length": None}}, folder / "config.yaml")
    (folder / "detections.json").write_text(json.dumps(detections))
    (folder / "results.json").write_text(json.dumps({"images": 3, "per_class": dict.fromkeys(NAMES)} | results))


FOUND = [
    {"image_id": 10, "category_id": 1, "bbox": [2, 2, 20, 20], "score": 0.9},
    {"image_id": 10, "category_id": 1, "bbox": [30, 5, 20, 30], "score": 0.95},  # a square
    {"image_id": 11, "category_id": 3, "bbox": [0, 0, 40, 40], "score": 0.8},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_set(tmp_path / "set")
    write_run(tmp_path / "run", tmp_path / "set", FOUND)
    return tmp_path / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pictures_and_tables(run: Path, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "classes").mkdir(parents=True)
    (out / "classes" / "000005.png").write_bytes(b"")  # a user's
    command("analyze", f"run={run}", "out=out", cwd=tmp_path).ok()
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    pictures = {"classes/002_circle.png", "classes/003_square_b_x_b.png", "supercategories/001_form_s.png"}
    assert files == pictures | {
        "classes/000005.png",
        "overall.png",
        "errors.csv",
        "errors.json",
        "tide.csv",
        "tide.png",
        "results.json",
        "config.yaml",
    }
    results = json.loads((out / "results.json").read_text())
    assert set(results["pictures"]) == pictures
    # circles: a square found first, then one of two; squares: none
    circle = {"C75": 26, "C50": 26, "Loc": 26, "Sim": 51, "Oth": 51, "BG": 51, "FN": 101}
    circle["C75"] = circle["C50"] = circle["Loc"] = 51 / 2  # type: ignore[assignment]
    assert results["curves"]["all"] == pytest.approx({k: (v / 101 + (k == "FN")) / 2 for k, v in circle.items()})
    assert results["curves"]["large"] == dict.fromkeys(circle)
    assert results["tide"]["counts"] == {"Cls": 1, "Loc": 0, "Both": 0, "Dupe": 0, "Bkg": 0, "Miss": 1}
    assert results["supercategories"] is True
    table = rows(out / "errors.csv")
    assert [row["name"] for row in table[::4]] == ["all classes", "form/s", *NAMES[:2]]
    assert table[0]["Sim"] == f"{results['curves']['all']['Sim']:.6f}"
    groups = json.loads((out / "errors.json").read_text())["groups"]
    assert len(groups[2]["precision"]["all"]["C50"]) == 101
    assert groups[2]["precision"]["large"] is None
    assert [row["error"] for row in rows(out / "tide.csv")] == ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN"]


def test_an_analysis_that_is_repeated_leaves_no_picture_of_the_one_before(run: Path, command: Command, tmp_path: Path) -> None:
    pictures = tmp_path / "out" / "classes"
    command("analyze", f"run={run}", "out=out", cwd=tmp_path).ok()
    (pictures / "003_mine.png").write_bytes(b"")
    for path in (tmp_path / "set" / "instances.json", run / "results.json"):  # the run is made again, of a class renamed
        path.write_text(path.read_text().replace("circle", "disc"))
    command("analyze", f"run={run}", "out=out", cwd=tmp_path).ok()
    assert {p.name for p in pictures.iterdir()} == {"002_disc.png", "003_square_b_x_b.png", "003_mine.png"}


def test_a_real_run_without_supercategories(detectors: Path, images: Path, command: Command, tmp_path: Path) -> None:
    weights = f"teacher.path={detectors / 'teacher.safetensors'}"
    command("evaluate", "teacher=checkpoint", weights, f"data.root={images}", "out=scores", cwd=tmp_path).ok()
    done = command("analyze", "run=scores", "out=out", "class_figures=false", cwd=tmp_path).ok()
    assert "area below each curve: C75 " in done.stdout
    scores, results = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("scores", "out"))
    # detections.json has rounded boxes and scores
    assert results["curves"]["all"]["C50"] == pytest.approx(scores["ap50"], abs=0.01)
    assert results["tide"]["ap50"] == pytest.approx(results["curves"]["all"]["C50"], abs=1e-6)
    assert results["curves"]["all"]["Sim"] == results["curves"]["all"]["Loc"]
    assert not (tmp_path / "out" / "classes").exists()
    assert not (tmp_path / "out" / "supercategories").exists()


def test_no_detections_at_all_and_a_set_that_moved(run: Path, command: Command, tmp_path: Path) -> None:
    (run / "detections.json").write_text("[]")
    shutil.move(tmp_path / "set", tmp_path / "moved")
    assert "if it was moved, say data.root=DIR" in command("analyze", f"run={run}", "out=out", cwd=tmp_path).error()
    command("analyze", f"run={run}", "out=out", "data.root=moved", cwd=tmp_path).ok()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["curves"]["all"] == {"C75": 0, "C50": 0, "Loc": 0, "Sim": 0, "Oth": 0, "BG": 0, "FN": 1}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", None, r"expected the folder of a run of `python -m detkd.evaluate`, found none"),
        ("config.yaml", "a: [", "config.yaml: expected the config of a run, found"),
        ("config.yaml", "a: 1", "found one without data.root"),
        ("results.json", None, "results.json: expected json of a finished run, found FileNotFoundError"),
        ("results.json", '{"images": 3}', "found results without per_class"),
        ("results.json", {"images": 4, "per_class": dict.fromkeys(NAMES)}, "expected results on the 3 images of .*, found 4"),
        ("detections.json", None, "detections.json: expected json of a finished run, found FileNotFoundError"),
        ("detections.json", "{}", "expected a json list, found dict"),
        ("detections.json", [{"image_id": 10}], "entry 0: expected image_id, category_id, bbox and score, found"),
        ("detections.json", ["x"], "entry 0: expected image_id"),
        (
            "detections.json",
            [FOUND[0], FOUND[0] | {"image_id": 99}],
            "entry 1: expected an image and a category .* found 99 and 1",
        ),
        ("detections.json", [FOUND[0] | {"category_id": [1]}], "entry 0: expected image_id"),
        ("detections.json", [FOUND[0] | {"bbox": [1, 2, 3]}], "entry 0: expected four numbers as bbox and one as score"),
        ("detections.json", [FOUND[0] | {"score": float("nan")}], "entry 0: expected four numbers as bbox"),
    ],
)
def test_damaged_runs(run: Path, command: Command, tmp_path: Path, file: str, content: Any, message: str) -> None:
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_text(content if isinstance(content, str) else json.dumps(content))
    assert re.search(message, command("analyze", f"run={run}", "out=out", cwd=tmp_path).error())
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_mistakes(run: Path, command: Command, tmp_path: Path) -> None:
    assert "run: expected the folder of a run" in command("analyze", "out=out", cwd=tmp_path).error()
    content = json.loads((tmp_path / "set" / "instances.json").read_text())
    (tmp_path / "set" / "instances.json").write_text(json.dumps(content | {"annotations": []}))
    assert "at least one box" in command("analyze", f"run={run}", "out=out", cwd=tmp_path).error()
    (tmp_path / "set" / "instances.json").write_text(json.dumps(content | {"images": [], "annotations": []}))
    assert "expected images, found none" in command("analyze", f"run={run}", "out=out", cwd=tmp_path).error()
