"""YOLO's text format, as its readers take it."""

from pathlib import Path

import pytest
import torch
import yaml

from detkd.data.yolo_txt import write_yolo_index, yolo_lines


def test_known_lines() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 200.0, 100.0]])
    assert (
        yolo_lines(boxes, torch.tensor([7, 0]), (100, 200))
        == "7 0.100000 0.400000 0.100000 0.400000\n0 0.500000 0.500000 1.000000 1.000000\n"
    )


def test_no_boxes_are_an_empty_file() -> None:
    assert yolo_lines(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (4, 4)) == ""


def test_reading_back_gives_the_boxes_to_a_thousandth_of_a_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 2, 2, generator=generator).sort(1).values * torch.tensor([640.0, 320.0])
    boxes = corners.flatten(1)  # (50, 4)
    rows = torch.tensor(
        [[float(v) for v in line.split()] for line in yolo_lines(boxes, torch.arange(50), (320, 640)).splitlines()]
    )
    assert rows[:, 0].tolist() == list(range(50))
    centre, size = rows[:, 1:3], rows[:, 3:]
    back = torch.cat([centre - size / 2, centre + size / 2], 1) * torch.tensor([640.0, 320.0, 640.0, 320.0])
    assert torch.allclose(back, boxes, atol=1e-3)
    assert float(rows[:, 1:].max()) <= 1  # ultralytics refuses an image with more


@pytest.mark.parametrize("box", [[-0.5, 0, 2, 2], [0, 0, 5, 2], [0, float("nan"), 2, 2]])
def test_boxes_that_leave_the_image_are_refused(box: list[float]) -> None:
    with pytest.raises(ValueError, match="inside 4 x 3 pixels"):
        yolo_lines(torch.tensor([box]), torch.tensor([0]), (3, 4))


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        yolo_lines(torch.zeros(1, 4), torch.tensor([0, 1]), (3, 4))


def test_index(tmp_path: Path) -> None:
    classes = ["it's", 'a "b": c', "漢字", "yes", "1e3", "- #x", "two\nlines\u2028"]
    write_yolo_index(tmp_path, ["shards/000000/000000.png", "shards/000001/000000.png"], classes)
    assert (tmp_path / "train.txt").read_text() == "./shards/000000/000000.png\n./shards/000001/000000.png\n"
    assert yaml.safe_load((tmp_path / "data.yaml").read_bytes()) == {
        "train": "train.txt",
        "val": "train.txt",
        "names": dict(enumerate(classes)),
    }
    assert (tmp_path / "classes.names").read_text(encoding="utf-8").split("\n") == [*classes[:-1], "two lines ", ""]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.names", "data.yaml", "train.txt"]


def test_an_index_of_nothing_is_still_yaml(tmp_path: Path) -> None:
    write_yolo_index(tmp_path, [], [])
    assert yaml.safe_load((tmp_path / "data.yaml").read_bytes())["names"] == {}
    assert (tmp_path / "train.txt").read_bytes() == b""


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png", "a\n.png", ""])
def test_files_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="below the folder"):
        write_yolo_index(tmp_path, [name], ["a"])
    assert not list(tmp_path.iterdir())
