from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkd.data.tile import MOST, Cell, boxes_in_cells, lay_out, resized, tile
from detkd.structures import Target

SIDE = st.integers(25, 200)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target(boxes: list[list[float]], labels: list[int] | None = None) -> Target:
    chosen = list(range(len(boxes))) if labels is None else labels
    return Target(boxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(chosen, dtype=torch.int64))


def covered(cells: list[Cell], image_size: tuple[int, int]) -> Tensor:
    """How many cells lie on each pixel."""
    canvas = torch.zeros(image_size, dtype=torch.int64)
    for top, left, height, width in cells:
        canvas[top : top + height, left : left + width] += 1
    return canvas


@given(st.integers(1, MOST), SIDE, SIDE, st.integers(0, 2**31))
def test_cells_partition_the_canvas(n: int, height: int, width: int, seed: int) -> None:
    cells = lay_out(n, (height, width), seeded(seed))
    assert len(cells) == n
    assert all(min(cell.height, cell.width) >= 1 and min(cell.top, cell.left) >= 0 for cell in cells)
    assert sum(cell.height * cell.width for cell in cells) == height * width
    assert bool((covered(cells, (height, width)) == 1).all())
    assert cells == lay_out(n, (height, width), seeded(seed))


@pytest.mark.parametrize("n", range(1, MOST + 1))
def test_cells_of_a_square_canvas_are_at_most_twice_as_long_as_wide_and_alike(n: int) -> None:
    for seed in range(8):
        cells = lay_out(n, (320, 320), seeded(seed))
        for cell in cells:
            assert max(cell.height, cell.width) <= 2 * (min(cell.height, cell.width) + 1)
        areas = [cell.height * cell.width for cell in cells]
        assert max(areas) <= 2.05 * min(areas)


def test_three_images_come_in_all_four_ways_and_in_any_order() -> None:
    layouts = [lay_out(3, (60, 60), seeded(seed)) for seed in range(200)]
    rows = {
        (Cell(0, 0, 30, 60), Cell(30, 0, 30, 30), Cell(30, 30, 30, 30)),
        (Cell(0, 0, 30, 30), Cell(0, 30, 30, 30), Cell(30, 0, 30, 60)),
    }
    columns = {tuple(sorted(Cell(left, top, width, height) for top, left, height, width in layout)) for layout in rows}
    assert {tuple(sorted(layout)) for layout in layouts} == {tuple(sorted(layout)) for layout in rows} | columns
    assert len({tuple(layout) for layout in layouts}) == 4 * 6
    upright = sum(any(cell.height == 60 for cell in layout) for layout in layouts)
    assert 70 < upright < 130


def test_layouts_of_known_numbers() -> None:
    assert lay_out(1, (48, 64), seeded()) == [Cell(0, 0, 48, 64)]
    for seed in range(5):
        assert sorted(lay_out(4, (48, 64), seeded(seed))) == [
            Cell(0, 0, 24, 32), Cell(0, 32, 24, 32), Cell(24, 0, 24, 32), Cell(24, 32, 24, 32)
        ]  # fmt: skip
        assert {(cell.height, cell.width) for cell in lay_out(25, (320, 320), seeded(seed))} == {(64, 64)}
        # a long canvas has one line
        assert {cell[2:] for cell in lay_out(4, (32, 128), seeded(seed))} == {(32, 32)}


def test_what_cannot_be_laid_out_is_refused() -> None:
    for n in (0, 26):
        with pytest.raises(ValueError, match=f"expected 1 to 25 images on a canvas, got {n}"):
            lay_out(n, (64, 64), seeded())
    with pytest.raises(ValueError, match="a canvas on which each of 25 images has a pixel"):
        lay_out(25, (4, 4), seeded())
    with pytest.raises(ValueError, match="positive height and width"):
        lay_out(1, (0, 4), seeded())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_fill_their_cells_in_their_order(dtype: torch.dtype) -> None:
    values = torch.arange(1, 8)
    images = [
        torch.full((3, 20 + 5 * i, 70 - 4 * i), 0, dtype=dtype) + v.to(dtype) / (8 if dtype.is_floating_point else 1)
        for i, v in enumerate(values)
    ]
    images = [image.to(dtype) for image in images]
    whole = [target([[0, 0, image.shape[2], image.shape[1]]], [i]) for i, image in enumerate(images)]
    canvas, followed = tile(images, whole, (64, 96), seeded(3))
    assert canvas.dtype == dtype
    assert canvas.shape == (3, 64, 96)
    assert followed["labels"].tolist() == list(range(7))
    painted = torch.zeros(64, 96, dtype=torch.bool)
    for (x1, y1, x2, y2), image in zip(followed["boxes"].int().tolist(), images):
        torch.testing.assert_close(canvas[:, y1:y2, x1:x2], image[:, :1, :1].expand(3, y2 - y1, x2 - x1))
        painted[y1:y2, x1:x2] = True
    assert bool(painted.all())


def test_one_image_is_itself_resized() -> None:
    image = torch.rand(3, 40, 60, generator=seeded())
    boxes = target([[6.0, 4.0, 30.0, 20.0]])
    same, kept = tile([image], [boxes], (40, 60), seeded())
    assert torch.equal(same, image)
    assert torch.equal(kept["boxes"], boxes["boxes"])
    larger, scaled = tile([image], [boxes], (80, 30), seeded())
    torch.testing.assert_close(larger, resized(image[None], (80, 30))[0])
    torch.testing.assert_close(scaled["boxes"], torch.tensor([[3.0, 8.0, 15.0, 40.0]]))


def test_shrinking_averages() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 64, 64)
    small = resized(stripes, (16, 16))
    torch.testing.assert_close(small[..., 2:-2], torch.full((1, 3, 16, 12), 0.5), atol=0.02, rtol=0)


def test_boxes_move_and_scale_with_their_images() -> None:
    cells = [Cell(0, 0, 10, 20), Cell(10, 20, 40, 30)]
    sizes = torch.tensor([[20, 20], [10, 10]])
    image, boxes, labels = boxes_in_cells(
        [target([[2, 4, 12, 20]], [7]), target([[0, 0, 10, 10], [1, 2, 3, 4]], [8, 9])], sizes, cells, 0
    )
    assert image.tolist() == [0, 1, 1]
    assert labels.tolist() == [7, 8, 9]
    torch.testing.assert_close(boxes, torch.tensor([[2.0, 2, 12, 10], [20, 10, 50, 50], [23, 18, 29, 26]]))


def test_boxes_under_the_least_side_are_dropped_and_those_of_no_area_always() -> None:
    image = torch.zeros(3, 100, 100)
    boxes = target([[0, 0, 4, 4], [0, 0, 3.9, 50], [10, 10, 50, 14], [10, 10, 90, 90], [5, 5, 5, 60]])
    for least, kept in ((2.0, [0, 2, 3]), (0.0, [0, 1, 2, 3]), (2.5, [3]), (100.0, [])):
        _, followed = tile([image], [boxes], (50, 50), seeded(), min_side=least)
        assert followed["labels"].tolist() == kept
        assert followed["boxes"].shape == (len(kept), 4)
        assert followed["labels"].dtype == torch.int64


def test_images_without_boxes() -> None:
    canvas, followed = tile([torch.ones(3, 8, 8)] * 3, [target([])] * 3, (32, 32), seeded())
    assert bool((canvas == 1).all())
    assert followed["boxes"].shape == (0, 4)
    assert followed["labels"].shape == (0,)
    _, some = tile([torch.ones(3, 8, 8)] * 3, [target([]), target([[0, 0, 8, 8]], [5]), target([])], (32, 32), seeded())
    assert some["labels"].tolist() == [5]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[tuple[int, int], Target]:
    """(height, width) of an image, and boxes of positive extent in it."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    corner = st.tuples(*[st.floats(0, 1, width=32)] * 4)
    boxes = []
    for a, b, c, d in draw(st.lists(corner, max_size=4)):
        box = [min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height]
        boxes.append(box)
    return (height, width), target(boxes)


@settings(deadline=None)
@given(st.lists(labelled(), min_size=1, max_size=MOST), SIDE, SIDE, st.sampled_from([0.0, 2.0, 7.5]), st.integers(0, 999))
def test_boxes_stay_in_their_cells_and_no_other_is_lost(
    sources: list[tuple[tuple[int, int], Target]], height: int, width: int, least: float, seed: int
) -> None:
    sizes, targets = torch.tensor([size for size, _ in sources]), [t for _, t in sources]
    cells = lay_out(len(sources), (height, width), seeded(seed))
    image, boxes, labels = boxes_in_cells(targets, sizes, cells, least)
    expected = []
    for number, ((source_height, source_width), t) in enumerate(sources):
        for box, label in zip(t["boxes"].double().tolist(), t["labels"].tolist()):
            sides = (
                (box[2] - box[0]) * cells[number].width / source_width,
                (box[3] - box[1]) * cells[number].height / source_height,
            )
            expected.append((number, label, min(sides)))
    kept = list(zip(image.tolist(), labels.tolist()))
    assert set(kept) >= {(i, c) for i, c, side in expected if side > max(least, 1e-2) + 1e-3}
    assert set(kept) <= {(i, c) for i, c, side in expected if side >= least - 1e-3}
    assert len(kept) == len(set(kept))
    for number, (x1, y1, x2, y2) in zip(image.tolist(), boxes.tolist()):
        cell = cells[number]
        assert cell.left <= x1 < x2 <= cell.left + cell.width
        assert cell.top <= y1 < y2 <= cell.top + cell.height
