from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from detkd.errors import InputError
from detkd.runtime.report.blocks import Gallery, Table
from detkd.runtime.report.build import make_report
from detkd.runtime.report.compared import comparison, comparison_table, read_comparison
from detkd.runtime.report.page import report_page
from detkd.runtime.report.runs import Run
from detkd.runtime.run import write_json


def ends(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def results() -> dict[str, Any]:
    base = {"name": "base <b>", "scores": {"ap": ends(0.25, 0.125, 0.375), "ap_large": ends(None)}, "differences": None}
    better = {
        "name": "better",
        "scores": {"ap": ends(0.5, 0.375, 0.625), "ap_large": ends(0.5)},
        "differences": {"ap": ends(0.25, 0.125, 0.375), "ap_large": ends(0.25, -0.125, 0.5)},
    }
    return {"images": 40, "resamples": 200, "seed": 0, "runs": [base, better], "command": "python -m detkd.compare runs=x"}


def compared(found: dict[str, Any] | None) -> Run:
    return Run("c", Path("/runs/c"), "compare", {"runs": ["a", "b"]}, found)


def test_scores_and_differences_with_their_intervals() -> None:
    (table,) = comparison(compared(results()), 0)
    assert isinstance(table, Table)
    assert table.header == ("score", "base <b>", "better", "better less base <b>")
    assert table.rows == (
        ("ap", "0.250 [0.125, 0.375]", "0.500 [0.375, 0.625]", "+0.250 [+0.125, +0.375] *"),
        ("ap_large", None, "0.500", "+0.250 [-0.125, +0.500]"),
    )
    assert "200 draws of 40 images" in table.note
    assert list(comparison(compared(None), 0)) == []


def test_differences_of_all_comparisons_in_one_table() -> None:
    (table,) = comparison_table([compared(results()), compared(None), compared({"runs": 3})])
    assert table.header[:4] == ("difference", "ap", "ap low", "ap high")
    assert table.rows == (("c: better less base <b>", 0.25, 0.125, 0.375, *[None] * 6),)
    assert comparison_table([]) == []


@pytest.mark.parametrize("found", [None, 3, [3], [{"name": "a"}], [{"scores": {}, "differences": 3}]])
def test_results_of_another_form_are_named(found: Any) -> None:
    with pytest.raises(InputError, match=r"results\.json: expected"):
        read_comparison(compared({"runs": found}))


def test_a_report_shows_the_pictures_of_a_comparison_and_of_an_inversion(tmp_path: Path) -> None:
    for name, config, found in (
        ("c", {"runs": ["a"]}, results()),
        ("i", {"stages": []}, {"command": "python -m detkd.invert"}),
    ):
        (tmp_path / name / "pictures" / "steps").mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(config), tmp_path / name / "config.yaml")
        write_json(tmp_path / name / "results.json", found)
        for picture in ("001_a.png", "objects.png", "steps/0.png"):
            Image.new("RGB", (8, 8)).save(tmp_path / name / "pictures" / picture)
    report = make_report([tmp_path])
    shown = [[b.pictures[0].caption for b in section.blocks if isinstance(b, Gallery)] for section in report.sections]
    assert shown == [["pictures/001_a.png", "pictures/objects.png"], ["pictures/objects.png"]]
    assert report.problems == ()
    assert [table.title for table in report.tables] == ["Comparisons"]
    page = report_page(report, tmp_path).decode()
    assert page.count("+0.250 [+0.125, +0.375] *") == 1
    assert "base &lt;b&gt;" in page
    assert "scores.ap.value" not in page  # the table for what no reader knows
