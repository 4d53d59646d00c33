from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from detkd.runtime import plotting
from detkd.runtime.plotting import file_name, save, shown

CHINESE = "\N{CJK UNIFIED IDEOGRAPH-4E2D}\N{CJK UNIFIED IDEOGRAPH-6587}"


def drawn(text: str, path: Path) -> np.ndarray:
    figure = Figure(figsize=(3, 1), dpi=50)
    figure.suptitle(text)
    save(figure, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def test_text_is_drawn_as_it_is() -> None:
    assert shown("a $x$\n b") == r"a \$x\$ b"
    assert shown("_a") == " _a"
    assert shown("x" * 50) == "x" * 39 + "\N{HORIZONTAL ELLIPSIS}"
    assert file_name(7, f"a/b{CHINESE}.jpg") == "007_a_b_jpg.png"
    assert file_name(7, CHINESE) == "007.png"


def test_a_file_name_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    text = shown(os.fsdecode(b"\xff.jpg"))
    assert text == r"\udcff.jpg"
    assert drawn(text, tmp_path / "a.png").min() < 128  # something is drawn


def test_a_character_without_a_glyph_makes_no_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        assert drawn(shown("\uf8f0" + CHINESE), tmp_path / "a.png").min() < 128
    assert not caplog.records


def test_fonts_that_are_there_fill_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = ["DejaVu Sans", "Malgun Gothic", "Noto Sans CJK JP", "Other"]
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: installed)
    plotting.families.cache_clear()
    try:
        assert plotting.families() == ["sans-serif", "Noto Sans CJK JP", "Malgun Gothic"]
        figure = Figure(figsize=(3, 1), dpi=50)
        title = figure.suptitle("a")
        before = list(matplotlib.rcParams["font.family"])
        with monkeypatch.context() as quiet:
            quiet.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(b""))
            save(figure, tmp_path / "a.png")
        assert title.get_fontfamily() == plotting.families()
        assert matplotlib.rcParams["font.family"] == before  # other people's figures are left as they are
    finally:
        plotting.families.cache_clear()
