from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detkd_tests_doubles import TinyDetector
from torch import Tensor

from detkd.detectors.torchvision import SSD
from detkd.errors import InputError
from detkd.losses.bn_stats import BatchNormStatistics
from detkd.losses.small_copy import SmallCopy, shrink, small_canvas, small_copy_loss
from detkd.losses.step import Step
from detkd.structures import Target

CLASSES = ("cat", "dog")


def target(*boxes: tuple[float, float, float, float]) -> Target:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
    }


def random_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def detector() -> Any:
    torch.manual_seed(0)
    return TinyDetector(CLASSES, image_size=(64, 64)).eval()


def step_of(detector: Any, images: Tensor, targets: Any) -> Step:
    return Step(images, targets, detector, detector(images))


def triangle_weights(old: int, new: int) -> np.ndarray:
    """(new, old) weights of an antialiased bilinear reduction, from the formula: a triangle of half-width old / new pixels."""
    centres = (np.arange(new, dtype=np.float64)[:, None] + 0.5) * old / new
    weights = np.maximum(0, 1 - np.abs(np.arange(old)[None] + 0.5 - centres) * new / old)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("size", "scale", "canvas"), [((40, 56), 0.6, (32, 64)), ((33, 47), 0.5, (48, 47)), ((32, 32), 0.75, (32, 32))]
)
def test_pixels_against_the_formula(size: tuple[int, int], scale: float, canvas: tuple[int, int]) -> None:
    images = random_images(2, *size).double()
    found, _ = shrink(images, [target(), target()], scale, canvas)
    rows, columns = round(scale * size[0]), round(scale * size[1])
    small = np.einsum("ih,jw,bchw->bcij", triangle_weights(size[0], rows), triangle_weights(size[1], columns), images.numpy())
    expected = np.full((2, 3, *canvas), 0.5)
    top, left = (canvas[0] - rows) // 2, (canvas[1] - columns) // 2
    expected[:, :, top : top + rows, left : left + columns] = small
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_boxes_follow() -> None:
    targets = [target((10, 20, 30, 40), (50, 40, 100, 80)), target()]
    _, moved = shrink(random_images(2, 80, 100), targets, 0.5, (64, 64))  # (40, 50) in the middle of (64, 64)
    assert moved[0]["boxes"].tolist() == [[12, 22, 22, 32], [32, 32, 57, 52]]
    assert moved[0]["labels"].tolist() == [0, 0]
    assert moved[1]["boxes"].shape == (0, 4)


def test_a_bright_box_stays_under_its_box() -> None:
    images = torch.zeros(1, 3, 96, 64)
    images[:, :, 24:72, 16:48] = 1
    small, moved = shrink(images, [target((16, 24, 48, 72))], 0.5, (96, 64))
    left, top, right, bottom = (int(v) for v in moved[0]["boxes"][0])
    assert (small[:, :, top + 1 : bottom - 1, left + 1 : right - 1] == 1).all()
    assert small[:, :, top - 1, left:right].max() < 0.2
    assert small[:, :, top:bottom, right].max() < 0.2


def test_a_box_without_area_stays_so() -> None:
    _, moved = shrink(random_images(1, 70, 90), [target((13, 7, 13, 30), (90, 70, 90, 70))], 0.6, (96, 96))
    boxes = moved[0]["boxes"]
    assert ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist() == [0, 0]


def test_a_canvas_too_small() -> None:
    with pytest.raises(ValueError, match=r"at least \(40, 50\), got \(32, 64\)"):
        shrink(random_images(1, 80, 100), [target()], 0.5, (32, 64))


def test_small_canvas_is_the_next_multiple_of_32() -> None:
    assert small_canvas((160, 160), 0.6) == (96, 96)
    assert small_canvas((160, 320), 0.5) == (96, 160)
    assert small_canvas((32, 33), 0.1) == (32, 32)


def test_gradient_in_double() -> None:
    images = random_images(1, 7, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: shrink(x, [target()], 0.6, (6, 5))[0], (images,))


def test_the_value_is_the_detectors_own_loss_on_the_copy(detector: Any) -> None:
    images, targets = random_images(2, 96, 64), [target((8, 10, 40, 50)), target((4, 4, 30, 24))]
    copies, moved = shrink(images, targets, 0.6, (64, 64))
    expected = detector.loss(detector(copies), moved)
    assert SmallCopy(0.6)(step_of(detector, images, targets)) == expected
    assert small_copy_loss(detector, images, targets, 0.6, (64, 64)) == expected


def test_canvas_full_has_the_size_of_the_image(detector: Any) -> None:
    images, targets = random_images(1, 64, 96), [target((8, 10, 40, 50))]
    term = SmallCopy(0.5, "full")
    assert term(step_of(detector, images, targets)) == small_copy_loss(detector, images, targets, 0.5, (64, 96))


def test_auto_takes_the_full_canvas_where_the_detector_refuses_the_small_one(
    detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, targets = random_images(1, 64, 64), [target((8, 10, 40, 50))]
    step, whole = step_of(detector, images, targets), type(detector).forward
    on_full = small_copy_loss(detector, images, targets, 0.4, (64, 64))

    def picky(self: Any, images: Tensor) -> Any:
        if min(images.shape[-2:]) < 64:
            raise InputError("expected images of at least 64 px")
        return whole(self, images)

    monkeypatch.setattr(type(detector), "forward", picky)
    assert SmallCopy(0.4)(step) == on_full
    with pytest.raises(InputError, match="at least 64 px"):
        SmallCopy(0.4, "small")(step)


def test_bn_stats_names_this_term_to_a_teacher_without_norms(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "norms", list)
    with pytest.raises(InputError, match=r"loss=\[detection,tv,small_copy\]"):
        BatchNormStatistics().setup(None, detector)
    SmallCopy().setup(None, detector)


@pytest.mark.slow
def test_ssd300_gets_the_full_canvas() -> None:
    torch.manual_seed(0)
    ssd = SSD("ssd300_vgg16", CLASSES).eval().requires_grad_(False)
    images, targets = random_images(1, 300, 300).requires_grad_(), [target((50, 60, 200, 220))]
    values = SmallCopy()(Step(images, targets, ssd))
    assert values == small_copy_loss(ssd, images, targets, 0.6, (300, 300))
    (gradient,) = torch.autograd.grad(torch.stack(list(values.values())).sum(), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 32)])
def test_a_flat_image_has_a_finite_value_and_gradient(detector: Any, size: tuple[int, int]) -> None:
    images = torch.full((1, 3, *size), 0.3, requires_grad=True)
    values = SmallCopy()(step_of(detector, images, [target((4, 6, 28, 30))]))
    (gradient,) = torch.autograd.grad(torch.stack(list(values.values())).sum(), images)
    assert all(torch.isfinite(v) for v in values.values())
    assert torch.isfinite(gradient).all()


def test_batch_is_the_mean_of_its_images(detector: Any) -> None:
    images, targets = random_images(3, 64, 64), [target((8, 10, 40, 50)), target((4, 4, 30, 24)), target((20, 16, 60, 60))]
    whole = SmallCopy()(step_of(detector, images, targets))
    singles = [SmallCopy()(step_of(detector, images, targets).image(i)) for i in range(3)]
    for name, value in whole.items():
        assert value.item() == pytest.approx(sum(s[name].item() for s in singles) / 3, rel=1e-5)


def test_images_without_boxes_are_finite(detector: Any) -> None:
    values = SmallCopy()(step_of(detector, random_images(2, 64, 64), [target(), target()]))
    assert all(torch.isfinite(v) for v in values.values())


def test_float32_under_autocast(detector: Any) -> None:
    images, targets = random_images(1, 64, 64), [target((8, 10, 40, 50))]
    precise = SmallCopy()(step_of(detector, images, targets))
    with torch.autocast("cpu", torch.bfloat16):
        values = SmallCopy()(step_of(detector, images, targets))
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(precise[name].item(), rel=0.1, abs=1e-3)


@pytest.mark.parametrize("scale", [0, 1, -0.5, 1.5, float("nan")])
def test_a_scale_that_is_no_reduction(scale: float) -> None:
    with pytest.raises(InputError, match=r"small_copy\.scale: expected a number between 0 and 1"):
        SmallCopy(scale)


def test_bad_input(detector: Any) -> None:
    with pytest.raises(InputError, match=r"small_copy\.canvas: expected 'auto', 'small' or 'full', got 'large'"):
        SmallCopy(canvas="large")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a term of invert"):
        SmallCopy().setup(detector, detector)
    with pytest.raises(InputError, match="expected targets, found none"):
        SmallCopy()(step_of(detector, random_images(1, 64, 64), None))
