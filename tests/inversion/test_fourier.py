from __future__ import annotations

import math

import pytest
import torch

from detkd.inversion.fourier import Fourier, FourierFactory, amplitudes


def test_one_coefficient_is_a_wave() -> None:
    spectrum = torch.zeros(1, 3, 8, 5, dtype=torch.complex64)
    spectrum[0, 1, 0, 2] = 1.0  # twice across the width
    image = torch.logit(Fourier(spectrum, (8, 8), decay=0.0)())
    columns = torch.arange(8)
    wave = torch.cos(2 * math.pi * 2 * columns / 8)
    assert image[0, 0].abs().max() < 1e-6
    assert image[0, 2].abs().max() < 1e-6
    scale = image[0, 1, 0, 0]
    torch.testing.assert_close(image[0, 1], (scale * wave).expand(8, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (33, 48), (24, 31)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_noise_has_the_spread_asked_for(size: tuple[int, int], decay: float) -> None:
    images = FourierFactory(std=0.1, colors="rgb", decay=decay).noise(400, size, torch.Generator().manual_seed(0))()
    assert torch.logit(images).std().item() == pytest.approx(0.1, rel=0.1)


def test_amplitudes_fall_with_the_frequency_and_the_mean_is_no_faster_than_the_slowest_wave() -> None:
    weights = amplitudes((64, 32), decay=1.0)
    assert weights.shape == (64, 17)
    assert weights[0, 0] == weights[1, 0] == weights[63, 0]  # a sixty-fourth of a cycle a pixel
    torch.testing.assert_close(weights[0, 8] / weights[0, 16], torch.tensor(2.0))
    torch.testing.assert_close(weights[8, 0] / weights[16, 0], torch.tensor(2.0))
    flat = amplitudes((64, 32), decay=0.0)
    assert (flat == flat[0, 0]).all()


def test_a_low_frequency_moves_whole_regions() -> None:
    image = FourierFactory(std=0.0).noise(1, (16, 16), torch.Generator())
    before = image().detach()
    with torch.no_grad():
        image.spectrum[0, 0, 0, 1, 0] = 4.0
    change = (image().detach() - before)[0, 0]
    assert (change.abs() > 0.01).float().mean() > 0.8
    assert (change[:, :4] > 0.01).all()  # one period across the width
    assert (change[:, 5:12] < -0.01).all()
