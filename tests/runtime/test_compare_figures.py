from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detkd.evaluation.matching import make_scene
from detkd.runtime.compare import ClassScore, Compared, compare, markdown
from detkd.runtime.compare_figures import calibration_figure, classes_figure, confidence_figure, curves_figure, sizes_figure
from detkd.runtime.compare_pictures import RIGHT, TRUTH, WRONG, side_by_side

BOXES = torch.tensor([[8.0, 8, 42, 42], [50, 8, 90, 60]])


def found(boxes: torch.Tensor, labels: list[int]) -> dict[str, Any]:
    return {"boxes": boxes, "labels": torch.tensor(labels).long(), "scores": torch.linspace(0.9, 0.5, len(labels))}


@pytest.fixture(scope="module")
def compared() -> list[Compared]:
    """On six images: a baseline that finds one of two, one that finds both, one that finds nothing."""
    truths = [{"boxes": BOXES, "labels": torch.tensor([0, 1])}] * 6
    runs = [found(BOXES, [0, 0]), found(BOXES, [0, 1]), found(BOXES[:0], [])]
    scenes = [make_scene([run] * 6, truths) for run in runs]
    return compare(["base", "_b$", "c<"], scenes, ("cat", "$do_{g$"), {}, resamples=20, seed=0, score_threshold=0.3)


def test_pngs_that_are_the_same_each_time(compared: list[Compared], tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        sizes_figure(compared[0], compared[1], folder / "gain.png")
        sizes_figure(compared[0], compared[2], folder / "loss.png")
        classes_figure(compared[1], folder / "classes.png")
        curves_figure(compared, folder / "curves.png")
        confidence_figure(compared, folder / "confidence.png")
        calibration_figure(compared, 0.3, folder / "calibration.png")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 15  # something is drawn


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == colour).all(-1).sum())


def test_right_is_yellow_wrong_red_and_truth_white(compared: list[Compared], tmp_path: Path) -> None:
    assert (RIGHT, WRONG, TRUTH) == ("#ffd500", "#ff3b30", "white")
    image = Image.new("RGB", (100, 70), "navy")
    true = make_scene([found(BOXES, [0, 1])], [{"boxes": BOXES, "labels": torch.tensor([0, 1])}]).true[0]
    counts = []
    for number, of in enumerate(compared):
        path = tmp_path / f"{number}.png"
        side_by_side(image, true, [(of.name, of.judged[0])], ("cat", "dog"), "a $x$", path)
        counts.append((pixels(path, (255, 213, 0)), pixels(path, (255, 59, 48))))
    nothing = counts[2]  # the legend alone
    assert counts[0][0] > nothing[0]
    assert counts[0][1] > nothing[1]
    assert counts[1][0] > counts[0][0]
    assert counts[1][1] == nothing[1]


def test_the_table_says_what_is_sure(compared: list[Compared]) -> None:
    text = markdown(compared, 6, 20, 0)
    lines = text.splitlines()
    assert lines[0] == "| run | ap | ap50 | ap75 | ap_small | ap_medium | ap_large |"
    assert lines[2] == "| base | 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] | - | 50.0 [50.0, 50.0] | - |"
    assert lines[4].startswith("| difference | **+50.0 [+50.0, +50.0]** |")
    assert lines[5].startswith("| c&lt; | 0.0 [0.0, 0.0] |")
    assert compared[1].per_class["cat"] == ClassScore(
        compared[0].per_class["cat"].ap, compared[1].per_class["cat"].difference, 6
    )
    few = compare(
        ["a", "b"],
        [make_scene([found(BOXES, [0, 1])], [{"boxes": BOXES, "labels": torch.tensor([0, 1])}])] * 2,
        ("cat", "dog"),
        {},
        resamples=5,
        seed=0,
        score_threshold=0.3,
    )
    assert few[1].per_class["cat"].ap.low is None  # of one image, all draws are alike
    assert few[1].per_class["cat"].ap.value == pytest.approx(1)
    assert markdown(few, 1, 5, 0).splitlines()[2] == "| a | 100.0 | 100.0 | 100.0 | - | 100.0 | - |"


@pytest.mark.parametrize("images", [4, 5])
def test_sizes_that_few_images_have_get_no_interval(images: int) -> None:
    large = torch.tensor([[0.0, 0, 200, 200]])
    truths = [found(torch.cat([BOXES, large]), [0, 0, 0]) if k < images else found(BOXES, [0, 0]) for k in range(40)]
    runs = [[found(BOXES, [0, 0])] * 40, [found(t["boxes"], t["labels"].tolist()) for t in truths]]
    base, other = compare(
        ["a", "b"], [make_scene(run, truths) for run in runs], ("cat",), {}, resamples=200, seed=0, score_threshold=0.3
    )
    assert base.scores["ap_large"].value == 0
    assert other.differences is not None
    assert (other.differences["ap_large"].low is None) == (base.scores["ap_large"].low is None) == (images < 5)
    assert other.differences["ap"].low is not None  # all images have boxes
    cells = markdown([base, other], 40, 200, 0).splitlines()[4].split(" | ")
    assert cells[-1].removesuffix(" |") == ("+100.0" if images < 5 else "**+100.0 [+100.0, +100.0]**")
