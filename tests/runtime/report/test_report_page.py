from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.store import StoreWriter
from detkd.errors import InputError
from detkd.runtime.report.blocks import Box, Curves
from detkd.runtime.report.build import make_report
from detkd.runtime.report.charts import curves_chart, thin
from detkd.runtime.report.markup import element
from detkd.runtime.report.page import report_page
from detkd.runtime.report.pictures import picture
from detkd.runtime.report.write import report_csv, report_json, report_markdown, write_report
from detkd.structures import Target

EVIL = "<script>alert(1)</script>"


def write_run(folder: Path, config: dict[str, Any], results: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A set of 3 images of a class with a hostile name, a student of it, and its scores, in a folder that needs quoting."""
    root = tmp_path / f"a 'b' \"c\" <i>ü{EVIL.replace('/', '')}"
    writer = StoreWriter(root / "set", {}, ("cat", EVIL), (32, 32), teacher_sha256="a" * 64, seed=0)
    targets = [Target(boxes=torch.tensor([[8.0, 8.0, 24.0, 24.0]]), labels=torch.tensor([i % 2])) for i in range(3)]
    writer.write_shard(0, torch.zeros(3, 3, 32, 32, dtype=torch.uint8), targets)
    writer.finish(1)
    write_run(root / "set", {"stages": [], "teacher": {"name": EVIL}}, {"teacher_ap50": 0.5, "images": 3})
    config = {"student": {}, "teacher": {"name": EVIL}, "data": {"root": str(root / "set")}}
    write_run(root / "student", config, {"student_sha256": "b" * 64, "teacher_sha256": "a" * 64, "versions": {"torch": EVIL}})
    (root / "student" / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2.5\n0,2,1.5\n")
    scores = {
        "ap50": 0.125,
        "images": 3,
        "per_class": {EVIL: 0.125},
        "detector_sha256": "b" * 64,
        "command": f"python -m detkd.evaluate {EVIL}",
    }
    write_run(root / "scores", {"teacher": {}, "data": {"root": "x"}}, scores)
    (root / "scores" / "detections.json").write_text("[]")
    return root


def test_the_page_has_all_runs_and_no_markup_of_theirs(runs: Path, tmp_path: Path) -> None:
    page = report_page(make_report([runs], title=EVIL), tmp_path).decode()
    assert page.count("<script>") == 1
    assert "alert(1)</script>" not in page
    assert page.count('<details class="run"') == 3
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.count("<image ") == 3
    assert "Content-Security-Policy" in page
    assert re.findall(r'href="([^"]*)"', page).count("data:,") == 1


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_runs_make_the_same_page(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(make_report([runs]), tmp_path / name)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert set(files_of(tmp_path / "one")) == {"report.html", "report.csv", "report.json", "report.md"}


def test_the_numbers_are_the_same_in_every_format(runs: Path) -> None:
    report = make_report([runs])
    rows = list(csv.DictReader(io.StringIO(report_csv(report))))
    assert [r["value"] for r in rows if (r["run"], r["column"]) == ("", "ap50")] == ["0.125"]
    assert [(r["row"], r["value"]) for r in rows if r["table"] == "curves"] == [("1", "2.5"), ("2", "1.5")]
    found = json.loads(json.dumps(report_json(report), allow_nan=False))
    assert [run["kind"] for run in found["runs"]] == ["evaluate", "invert", "distill"]
    assert found["runs"][2]["curves"] == {"train/loss": [[1, 2.5], [2, 1.5]]}
    assert {(e["what"], e["by"]) for e in found["lineage"]["edges"]} >= {("inverted from", "hash"), ("trained on", "path")}
    markdown = report_markdown(report)
    assert "0.125" in markdown
    assert "<script>" not in markdown


def test_damage_beside_the_results_leaves_out_that_part_alone(runs: Path, tmp_path: Path) -> None:
    (runs / "student" / "metrics.csv").write_text("a,b\n1,2,3\n")
    (runs / "scores" / "detections.json").write_text('[{"score": "x"}]')
    (runs / "scores" / "broken.png").write_bytes(b"no image")
    (runs / "scores" / "fine.csv").write_text("name,x\na,1\n")
    image = runs / "set" / "shards" / "000000" / "000001.png"
    image.write_bytes(b"")
    report = make_report([runs])
    assert len(report.sections) == 3
    assert len(report.problems) == 4
    for name in ("metrics.csv", "detections.json", "broken.png", "000001.png"):
        assert any(name in problem for problem in report.problems), name
    page = report_page(report, tmp_path).decode()
    assert "fine.csv" in page
    assert "Not read" in page


def test_an_index_cannot_lead_out_of_its_folder(runs: Path) -> None:
    Image.new("RGB", (8, 8)).save(runs / "secret.png")
    index = runs / "set" / "instances.json"
    index.write_text(index.read_text().replace("shards/000000/000000.png", "../secret.png"))
    report = make_report([runs])
    assert any("expected images inside of the folder" in problem for problem in report.problems)


def test_runs_without_labels_and_without_detections(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"teacher": {}, "data": {}}, {"ap": None, "ap50": None, "images": 2})
    (folder / "detections.json").write_text("[]")
    page = report_page(make_report([folder]), tmp_path).decode()
    assert "Not scored: the images have no labels" in page
    assert '>detections</th><td class="number" data-number="0">0</td>' in page


def test_what_does_not_fit_is_left_out_pictures_first_and_said(runs: Path, tmp_path: Path) -> None:
    Image.effect_noise((900, 900), 90).save(runs / "scores" / "big.png")
    report = make_report([runs])
    whole = report_page(report, tmp_path)
    less = report_page(report, tmp_path, limit=len(whole) - 100_000)
    assert len(less) < len(whole) - 100_000
    assert b"left out, the page would be too large" in less
    assert b"left out, the page would be too large" not in whole
    assert less.count(b"<polyline") == whole.count(b"<polyline")


def test_long_tables_are_cut_on_the_page_and_whole_in_the_csv(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": 1})
    (folder / "long.csv").write_text("name,x\n" + "".join(f"r{i},{i}\n" for i in range(500)))
    report = make_report([folder])
    page = report_page(report, tmp_path).decode()
    assert "The first 200 of 500 rows" in page
    assert ">r199<" in page
    assert ">r200<" not in page
    assert "r499,x,499" in report_csv(report)


def test_bad_arguments(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images: expected"):
        make_report([runs], images=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder to write to, found a file"):
        write_report(make_report([runs]), tmp_path / "file")


def test_pictures_are_made_small_and_boxes_with_them(tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.png")
    small = picture(tmp_path / "a.png", "a", 100, [Box((40.0, 40.0, 80.0, 120.0), "x")])
    assert small.size == (100, 50)
    assert small.boxes[0].xyxy == (10, 10, 20, 30)
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.size == (100, 50)
        assert Image.MIME[image.format or ""] == small.media


def test_charts_stay_inside_and_say_what_they_show() -> None:
    lines = {"a": [(float(i), 10.0 ** (i % 5)) for i in range(1000)], "<b>": [(5.0, 3.0)], "none": []}
    drawn = str(curves_chart(Curves("loss <i>", "step", lines)))
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', drawn)[0].split()]
    assert len(points) == 240
    assert all(0 <= x <= 360 and 0 <= y <= 190 for x, y in points)
    assert "log y" in drawn
    assert "<i>" not in drawn.replace("<i class", "")
    assert "a from 1 to 10000, lowest 1" in drawn
    assert "no values" in curves_chart(Curves("empty", "step", {}))
    assert "polyline" in curves_chart(Curves("flat", "step", {"a": [(0.0, 0.0), (0.0, 0.0)]}))
    assert thin([(0.0, 0.0)] * 3, 2) == [(0.0, 0.0)] * 2


def test_elements_escape_all_that_is_no_element() -> None:
    assert element("p", {"title": '"<&', "hidden": True, "id": None}, "<b>", element("i", None, "&")) == (
        '<p title="&quot;&lt;&amp;" hidden>&lt;b&gt;<i>&amp;</i></p>'
    )
    assert element("p", None, "a\x00\ud800\x1b") == "<p>a???</p>"
