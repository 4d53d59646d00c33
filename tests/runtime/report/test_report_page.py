from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.store import StoreWriter
from detkd.errors import InputError
from detkd.runtime.report import build
from detkd.runtime.report.blocks import Box, Curves
from detkd.runtime.report.build import make_report
from detkd.runtime.report.charts import curves_chart, number, thin
from detkd.runtime.report.lineage import trace
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
    assert b"Left out, the page would be too large: Figures" in less
    assert b"Left out, the page would be too large" not in whole
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


def test_many_runs_of_many_classes_stay_under_the_limit_and_it_is_said(tmp_path: Path) -> None:
    per_class = {f"class {i}": i / 1000 for i in range(100)}
    for i in range(60):
        write_run(
            tmp_path / "runs" / f"r{i}", {"teacher": {}, "data": {"root": "/sets/d"}}, {"ap50": 0.5, "per_class": per_class}
        )
    report = make_report([tmp_path / "runs"])
    limit = 300_000
    assert len(report_page(report, tmp_path)) > 2 * limit
    page = report_page(report, tmp_path, limit)
    assert len(page) < limit
    assert b"Left out, the page would be too large: Per class: sets/d." in page
    assert b"<h4>Scores on " in page
    assert "r59" in report_csv(report)
    assert ",Per class: " in report_csv(report)


def test_a_lineage_of_many_is_drawn_in_groups_or_not_at_all(tmp_path: Path) -> None:
    for i in range(40):
        config = {"student": {}, "data": {"root": f"/sets/{i if i < 35 else 0}"}}
        write_run(tmp_path / f"s{i:02}", config, {"student_sha256": f"{i:064}"})
    page = report_page(make_report([tmp_path]), tmp_path).decode()
    assert "75 detectors and sets are too many to be drawn" in page
    assert '<svg class="lineage"' not in page
    assert "<details open><summary>Lineage as a table" in page
    few = [tmp_path / f"s{i:02}" for i in (0, *range(35, 40))]
    for i in range(40):
        write_run(tmp_path / f"s{i:02}", {"student": {}, "data": {"root": "/sets/0"}}, {"student_sha256": f"{i:064}"})
    page = report_page(make_report([tmp_path]), tmp_path).decode()
    assert "40 detectors</text>" in page
    assert "Of 41 detectors and sets, those of the same sources are one box" in page
    assert "one box" not in report_page(make_report(few), tmp_path).decode()


NASTY = (
    "a\0b",
    "\ud800",
    "x" * 5000,
    float("nan"),
    float("-inf"),
    10**400,
    [],
    {"a": [1]},
    True,
    "",
    ["a"],
    "../../etc/passwd",
)


@pytest.mark.parametrize("value", NASTY, ids=lambda v: repr(v)[:20])
def test_no_value_in_a_run_keeps_the_others_from_being_shown(value: Any, runs: Path, tmp_path: Path) -> None:
    keys = "ap ap50 images per_class scored_on scored_sha256 student student_sha256 teacher_sha256 data_sha256 command versions"
    keys += " detector_sha256 runs resamples teacher_ap50 verifier_ap50"
    node = {"root": value, "path": value, "name": value}
    for kind, parts in (("student", ("student", "teacher", "data")), ("scores", ("teacher", "data"))):
        config = yaml.safe_dump(dict.fromkeys(parts, node)).encode("utf-8", "surrogatepass")
        for folder, results in {
            kind: dict.fromkeys(keys.split(), value),
            f"{kind} compared": {"command": "python -m detkd.compare", "runs": value},
            **{f"{kind} {key}": {key: value} for key in keys.split()},
        }.items():
            (runs / folder).mkdir(exist_ok=True)
            (runs / folder / "config.yaml").write_bytes(
                config if folder == kind else f"{parts[0]}: {{}}\ndata: {{}}\n".encode()
            )
            (runs / folder / "results.json").write_text(json.dumps(results))
    (runs / "scores" / "detections.json").write_text(json.dumps([{"score": value, "image_id": value}]))
    report = make_report([runs], images=2)
    assert any(section.run.name == "set" for section in report.sections)
    write_report(report, tmp_path / "out")
    json.loads((tmp_path / "out" / "report.json").read_text())


def test_a_score_that_is_no_number_is_named(runs: Path) -> None:
    for score in ("NaN", "Infinity", "1" + "0" * 400):
        (runs / "scores" / "detections.json").write_text(f'[{{"image_id": 1, "score": {score}}}]')
        (problem,) = make_report([runs]).problems
        assert "detections.json: expected detections in COCO's results format" in problem
    (runs / "scores" / "detections.json").write_text('[{"image_id": 1, "score": 1e308}, {"image_id": 1, "score": -1}]')
    assert make_report([runs]).problems == ()


def test_a_run_that_a_stage_stumbles_over_is_named_and_the_others_shown(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(found: Any, *rest: Any, **more: Any) -> Any:
        if any(run.name == "scores" for run in found):
            raise ZeroDivisionError("by zero")
        return trace(found, *rest, **more)

    monkeypatch.setattr(build, "trace", stumble)
    report = make_report([runs])
    assert [section.run.name for section in report.sections] == ["set", "student"]
    assert report.problems == ("scores: cannot be shown (ZeroDivisionError: by zero); the run is left out",)
    with pytest.raises(InputError, match="expected at least one run that can be read, found none: scores: cannot"):
        make_report([runs / "scores"])


def test_names_in_bytes_of_no_encoding(runs: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"b\xff")
    try:
        runs.rename(odd)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    page = write_report(make_report([odd]), tmp_path / "out")
    assert b'href="../b%FF/scores"' in page.read_bytes()
    report = write_report(make_report([odd]), odd / "report")
    assert b'href="../scores"' in report.read_bytes()


def test_every_csv_is_read_and_pictures_beyond_the_first_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": 1})
    for i in range(30):
        (folder / f"t{i:02}.csv").write_text("name,x\na,1\n")
        Image.new("RGB", (4, 4)).save(folder / f"p{i:02}.png")
    report = make_report([folder])
    assert "t29.csv,a,x,1" in report_csv(report)
    assert report.problems == ("run: 24 of 30 pictures are shown; not shown: p24.png, p25.png, p26.png and 3 more",)


def test_numbers_keep_their_digits_and_what_is_none_is_none_in_all_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": 1}, {"seconds": 18000.53, "loss": float("nan"), "top": float("inf")})
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,1000001,2.5\n0,1000011,1.5\n0,1000011.5,1\n")
    report = make_report([folder])
    rows = [tuple(row) for row in csv.reader(io.StringIO(report_csv(report)))]
    assert [row[2] for row in rows if row[1] == "curves"] == ["1000001", "1000011", "1000011.5"]
    assert [row[4] for row in rows if row[1] == "Results"] == ["18000.53", "", ""]
    markdown = report_markdown(report)
    assert "| seconds | 18001 |" in markdown
    assert "| loss |  |" in markdown
    assert report_json(report)["runs"][0]["results"] == {"seconds": 18000.53, "loss": None, "top": None}
    page = report_page(report, tmp_path).decode()
    assert ">18001<" in page
    assert 'data-number="nan"' not in page
    assert ">nan<" not in page
    assert [number(value) for value in (18000.53, 1000001.0, 0.00012345, float("inf"), 1e308)] == [
        *("18001", "1000001", "0.000123", "inf", "1e+308")
    ]


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
    assert "last 3" in curves_chart(Curves("loss", "step", {"loss": [(0.0, 1.0), (1.0, 3.0)]}))
    assert "last" not in curves_chart(Curves("detections", "score", {"detections": [(0.0, 1.0), (1.0, 3.0)]}))
    assert "polyline" in curves_chart(Curves("flat", "step", {"a": [(0.0, 0.0), (0.0, 0.0)]}))
    assert thin([(0.0, 0.0)] * 3, 2) == [(0.0, 0.0)] * 2


def test_elements_escape_all_that_is_no_element() -> None:
    assert element("p", {"title": '"<&', "hidden": True, "id": None}, "<b>", element("i", None, "&")) == (
        '<p title="&quot;&lt;&amp;" hidden>&lt;b&gt;<i>&amp;</i></p>'
    )
    assert element("p", None, "a\x00\ud800\x1b") == "<p>a???</p>"
