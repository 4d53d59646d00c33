from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from detkd.evaluation.tide import Tide
from detkd.runtime.error_figures import CurvesSheet, curves_figure, tide_figure
from detkd.runtime.plotting import file_name, shown

SIZES = ("all", "small", "medium", "large")


def test_pngs_that_are_the_same_each_time_whatever_a_class_is_called(tmp_path: Path) -> None:
    curve = np.linspace(0.2, 1, 7)[:, None, None] * np.linspace(1, 0.5, 101) * np.ones((7, 4, 1))
    curve[:, 3] = np.nan
    found = Tide(0.25, {"Cls": 0.1, "Miss": 0.0, "FP": 0.2}, {"Cls": 3, "Miss": 0})
    for folder in ("a", "b"):
        curves_figure("$a_{b$ <i>\n", SIZES, curve, False, tmp_path / folder / "curves.png")
        tide_figure("__$\\frac{$", found, tmp_path / folder / "tide.png")
    for name, size in (("curves.png", (960, 800)), ("tide.png", (1000, 450))):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as image:
            assert (image.format, image.size) == ("PNG", size)
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20  # something is drawn


def test_a_sheet_draws_each_picture_as_a_new_one_would(tmp_path: Path) -> None:
    full = np.linspace(0.2, 1, 7)[:, None, None] * np.linspace(1, 0.5, 101) * np.ones((7, 4, 1))
    partly = full / 2
    partly[:, 2] = np.nan
    sheet = CurvesSheet(SIZES, True)
    for number, curve in enumerate((full, partly, full)):
        sheet.draw(f"class {number}", curve, tmp_path / "sheet.png")
        curves_figure(f"class {number}", SIZES, curve, True, tmp_path / "alone.png")
        assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_text_of_unknown_origin() -> None:
    assert shown("a\n b") == "a b"
    assert shown("$x$") == r"\$x\$"
    assert shown("_hidden") == " _hidden"
    assert len(shown("x" * 100)) == 40
    assert file_name(7, "../a b/<c>") == "007_a_b_c.png"
    assert file_name(7, "\N{CJK UNIFIED IDEOGRAPH-72AC}") == "007.png"
