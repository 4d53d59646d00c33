from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from detkd.evaluation.feature_comparison import Comparison
from detkd.evaluation.feature_distance import RegionSums
from detkd.runtime.feature_figures import distance_figure, gradient_figure
from detkd.structures import Target

OBJECTS = [(torch.rand(3, 32, 32), Target(boxes=torch.tensor([[2.0, 2.0, 20.0, 30.0]]), labels=torch.zeros(1).long()))]


def comparison(seed: int, cells: float = 4.0) -> Comparison:
    generator = torch.Generator().manual_seed(seed)
    sums = [torch.rand(8, generator=generator, dtype=torch.float64) for _ in range(2)]
    distance = RegionSums(*sums, torch.tensor([cells, 12.0], dtype=torch.float64))
    return Comparison("p3", distance, {"p3": distance}, [torch.rand(4, 4, generator=generator)])


@pytest.mark.parametrize("count", [1, 5])
def test_pngs_that_are_the_same_each_time(tmp_path: Path, count: int) -> None:
    compared = {f"student {i}": comparison(i) for i in range(count)}
    for folder in ("a", "b"):
        distance_figure(compared, 20, tmp_path / folder / "distance.png")
        gradient_figure(compared, OBJECTS, tmp_path / folder / "gradient.png")
    for name in ("distance.png", "gradient.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50  # something is drawn
    with Image.open(tmp_path / "a" / "distance.png") as image:
        assert image.size == (1200, 500)
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_region_without_cells_and_a_gradient_of_0_are_drawn(tmp_path: Path) -> None:
    empty = comparison(0, cells=0.0)
    empty.distance = RegionSums(torch.zeros(8, dtype=torch.float64), *empty.distance[1:])
    empty.heat = [torch.zeros(4, 4)]
    distance_figure({"a": empty}, 1, tmp_path / "distance.png")
    gradient_figure({"a": empty}, OBJECTS, tmp_path / "gradient.png")
    assert {p.name for p in tmp_path.iterdir()} == {"distance.png", "gradient.png"}


def test_names_are_drawn_as_they_are(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    compared = {"a $do_{g$": comparison(0), "_b \N{CJK UNIFIED IDEOGRAPH-4E2D}": comparison(1), "\udcff": comparison(2)}
    distance_figure(compared, 2, tmp_path / "distance.png")
    gradient_figure(compared, OBJECTS, tmp_path / "gradient.png")
    assert [str(warning.message) for warning in recwarn] == []
    assert len(list(tmp_path.iterdir())) == 2
