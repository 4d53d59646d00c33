from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from detkd.inversion.pictures import PictureCallback, picture_grid, save_picture
from detkd.structures import Target

CLASSES = ("cat", "dog")


def target(*boxes: tuple[float, ...]) -> Target:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
    }


def images(count: int, height: int = 20, width: int = 40) -> torch.Tensor:
    return torch.full((count, 3, height, width), 100, dtype=torch.uint8)


def test_the_grid_enlarges_by_a_whole_factor_and_pads_by_two() -> None:
    grid = picture_grid(images(5), [target((2, 2, 30, 15))] * 5, CLASSES, columns=3, side=160)
    assert grid.dtype == torch.uint8
    assert tuple(grid.shape) == (3, 2 * (80 + 2) + 2, 3 * (160 + 2) + 2)
    assert tuple(picture_grid(images(1, 300, 300), [target()], CLASSES).shape) == (3, 300, 300)  # never reduced


def test_boxes_are_drawn_in_yellow_where_they_are() -> None:
    grid = picture_grid(images(1), [target((5, 5, 25, 15))], CLASSES, side=160)
    yellow = (grid == torch.tensor([255, 255, 0], dtype=torch.uint8)[:, None, None]).all(0)
    assert yellow[20, 30:90].all()  # the upper edge, at 4 times the size
    assert yellow[30:55, 20].all()
    assert not yellow[:, 110:].any()


def test_a_box_without_area_is_not_drawn() -> None:
    plain = picture_grid(images(2), [target(), target()], CLASSES)
    assert torch.equal(picture_grid(images(2), [target((0, 0, 0, 0)), target()], CLASSES), plain)
    both: Target = {"boxes": torch.tensor([[0.0, 0, 0, 0], [5, 5, 25, 15]]), "labels": torch.tensor([0, 1])}
    one: Target = {"boxes": both["boxes"][1:], "labels": both["labels"][1:]}
    assert torch.equal(picture_grid(images(1), [both], CLASSES), picture_grid(images(1), [one], CLASSES))


def test_the_file_is_a_png_of_the_same_pixels_and_nothing_else_is_left(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 7, 11), dtype=torch.uint8)
    path = tmp_path / "deep" / "grid.png"
    save_picture(picture, path)
    with Image.open(path) as read:
        assert read.format == "PNG"
        assert read.size == (11, 7)
        assert torch.equal(torch.tensor(list(read.getdata()), dtype=torch.uint8).view(7, 11, 3).permute(2, 0, 1), picture)
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_pictures_need_an_interval(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every >= 1, got 0"):
        PictureCallback(tmp_path, every=0)
