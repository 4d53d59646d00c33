from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detkd.errors import InputError
from detkd.runtime.figures import _line, _mean, objects_figure

GROWING = {"iterations": [1, 100, 200, 300], "objects": [1.0, 1.0, 2.5, 3.0], "loss": [9.0, 4.0, 3.0, 2.0]}


def test_a_png_of_the_size_it_says(tmp_path: Path) -> None:
    path = tmp_path / "new" / "objects.png"
    objects_figure([GROWING, GROWING | {"objects": [1.0, 2.0, 2.0, 5.0]}], path)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (800, 500))
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 20  # something is drawn
    assert [p.name for p in path.parent.iterdir()] == ["objects.png"]
    before = path.read_bytes()
    objects_figure([GROWING, GROWING | {"objects": [1.0, 2.0, 2.0, 5.0]}], path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("objects", [[0.0], [1.0, 1.0, 1.0]])
def test_flat_lines_and_single_points_are_drawn(tmp_path: Path, objects: list[float]) -> None:
    objects_figure([{"iterations": list(range(len(objects))), "objects": objects}], tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size > 1000


def test_the_mean_covers_what_all_batches_have() -> None:
    lines = [_line({"iterations": [0, 10, 20], "objects": [1, 1, 3]}, 0), _line({"iterations": [10, 5], "objects": [2, 2]}, 1)]
    x, y = _mean(lines)
    assert x.tolist() == [5, 10]
    assert y.tolist() == [1.5, 1.5]
    x, y = _mean([_line({"iterations": [1], "objects": [1]}, 0), _line({"iterations": [4], "objects": [2]}, 1)])
    assert x.tolist() == [1, 4]
    assert y.tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ([], "at least one batch, got none"),
        ([GROWING, {"iterations": [1, 2], "objects": [1.0]}], "batch 1.*got 2 and 1"),
        ([{"iterations": [], "objects": []}], "batch 0.*got 0 and 0"),
        ([{"loss": [1.0]}], "batch 0.*got 0 and 0"),
    ],
)
def test_traces_that_cannot_be_drawn(tmp_path: Path, traces: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        objects_figure(traces, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())
