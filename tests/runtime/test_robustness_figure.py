from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from detkd.evaluation.coco import Scores
from detkd.evaluation.corruptions import CORRUPTIONS
from detkd.evaluation.robustness import Robustness
from detkd.runtime.robustness_figure import robustness_figure


def scores(ap: float) -> Scores:
    return Scores(ap, ap, ap, None, None, None, 5)


@pytest.mark.parametrize(("names", "panels"), [(list(CORRUPTIONS), 4), (["fog"], 1), (["contrast", "snow"], 2)])
def test_a_panel_for_each_group_and_the_same_png_each_time(tmp_path: Path, names: list[str], panels: int) -> None:
    corrupted = {name: {s: scores(0.3 / (s + k)) for s in (1, 3)} for k, name in enumerate(names)}
    for name in ("a.png", "b.png"):
        robustness_figure(Robustness(scores(0.4), corrupted), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert image.size == (360 * panels, 480)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50
    assert len(list(tmp_path.iterdir())) == 2


def test_a_detector_that_finds_nothing(tmp_path: Path) -> None:
    robustness_figure(Robustness(scores(0.0), {"fog": {5: scores(0.0)}}), tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
