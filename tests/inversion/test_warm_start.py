from __future__ import annotations

from typing import Any

import pytest
import torch

from detkd.errors import InputError
from detkd.inversion.warm_start import WarmStart
from detkd.structures import Target


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def start(warm: WarmStart, targets: list[Target], seed: int = 0, size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    bank = torch.zeros(2, 3, 16, 16)
    bank[0, 0, 2:6, 4:10] = 1.0  # a red thing of class 1, nothing else has a colour
    return warm(bank, [target([[4, 2, 10, 6]], [1]), target([], [])], targets, size, torch.Generator().manual_seed(seed))


def test_a_crop_of_the_right_class_fills_the_box() -> None:
    image = start(WarmStart(contrast=1.0, noise=0.0), [target([[3, 1, 19, 9]], [1])])[0]
    assert image.shape == (3, 16, 24)
    assert torch.equal(image[0, 1:9, 3:19], torch.ones(8, 16))
    assert image[1:].max() == 0


def test_a_class_that_the_bank_lacks_leaves_the_background() -> None:
    images = start(WarmStart(contrast=1.0, noise=0.0), [target([[0, 0, 24, 16]], [0])] * 8, size=(16, 16))
    red = images[:, 0].flatten(1).sum(1)
    assert set(red.tolist()) == {0.0, 24.0}  # one bank image or the other, mirrored or not


def test_contrast_and_noise_leave_room() -> None:
    images = start(WarmStart(contrast=0.5, noise=0.05), [target([], [])] * 4)
    assert 0 <= images.min() < images.max() <= 1
    assert abs(float(images[:, 1].mean()) - 0.25) < 0.01
    assert abs(float(images[:, 1].std()) - 0.05) < 0.01


def test_the_generator_decides() -> None:
    targets = [target([[3, 1, 19, 9]], [1])] * 3
    assert torch.equal(start(WarmStart(), targets), start(WarmStart(), targets))
    assert not torch.equal(start(WarmStart(), targets), start(WarmStart(), targets, seed=1))


@pytest.mark.parametrize("options", [{"batches": 0}, {"shorten": 0.0}, {"shorten": 1.5}])
def test_senseless_settings_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        WarmStart(**options)
