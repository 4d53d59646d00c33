"""Images to the network's size and boxes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detkd.data.letterbox import place


def test_stretch_scales_each_axis_on_its_own() -> None:
    image, placement = place(Image.new("RGB", (40, 20), (10, 20, 30)), (60, 80), "stretch")
    assert image.shape == (3, 60, 80)
    assert image.dtype == torch.uint8
    assert image[:, 30, 40].tolist() == [10, 20, 30]
    assert placement.apply_xyxy(torch.tensor([[10.0, 5.0, 20.0, 10.0]])).tolist() == [[20.0, 15.0, 40.0, 30.0]]


def test_letterbox_centres_on_grey() -> None:
    image, placement = place(Image.new("RGB", (40, 20), (255, 0, 0)), (80, 80), "letterbox")
    assert (placement.scale_x, placement.scale_y, placement.offset_x, placement.offset_y) == (2.0, 2.0, 0.0, 20.0)
    assert (image[:, :20] == 114).all()
    assert (image[:, 60:] == 114).all()
    assert (image[0, 20:60] == 255).all()
    assert placement.apply_xyxy(torch.tensor([[0.0, 0.0, 40.0, 20.0]])).tolist() == [[0.0, 20.0, 80.0, 60.0]]


def test_same_size_leaves_the_pixels() -> None:
    source = Image.effect_noise((24, 16), 80).convert("RGB")
    for resize in ("stretch", "letterbox"):
        image, placement = place(source, (16, 24), resize)  # type: ignore[arg-type]
        assert image.permute(1, 2, 0).flatten().tolist() == list(source.tobytes())
        assert placement.scale_x == placement.scale_y == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_extreme_images_come_through(size: tuple[int, int], resize: str) -> None:
    image, placement = place(Image.new("RGB", size, (1, 2, 3)), (32, 48), resize)  # type: ignore[arg-type]
    assert image.shape == (3, 32, 48)
    assert (image == torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]).all(0).any()
    assert min(placement.scale_x, placement.scale_y) > 0


def test_empty_boxes_stay_empty() -> None:
    _, placement = place(Image.new("RGB", (5, 5)), (32, 32), "letterbox")
    assert placement.apply_xyxy(torch.zeros(0, 4)).shape == (0, 4)
    assert placement.undo_xyxy(torch.zeros(0, 4), (5, 5)).shape == (0, 4)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    resize=st.sampled_from(["stretch", "letterbox"]),
    seed=st.integers(0, 99),
)
def test_undo_inverts_apply_and_content_is_inside(width: int, height: int, resize: str, seed: int) -> None:
    _, placement = place(Image.new("RGB", (width, height)), (64, 96), resize)  # type: ignore[arg-type]
    corners = torch.rand(5, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(1).values.double()
    boxes = (corners * torch.tensor([width, height])).reshape(5, 4)
    placed = placement.apply_xyxy(boxes)
    assert (placed >= -1e-9).all()
    assert (placed <= torch.tensor([96, 64, 96, 64]) + 1e-9).all()
    torch.testing.assert_close(placement.undo_xyxy(placed, (height, width)), boxes)


def test_undo_clips_to_the_original() -> None:
    _, placement = place(Image.new("RGB", (40, 20)), (80, 80), "letterbox")
    assert placement.undo_xyxy(torch.tensor([[-9.0, 0.0, 99.0, 80.0]]), (20, 40)).tolist() == [[0.0, 0.0, 40.0, 20.0]]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="RGB"):
        place(Image.new("L", (4, 4)), (8, 8), "stretch")
    with pytest.raises(ValueError, match="letterbox"):
        place(Image.new("RGB", (4, 4)), (8, 8), "crop")  # type: ignore[arg-type]
