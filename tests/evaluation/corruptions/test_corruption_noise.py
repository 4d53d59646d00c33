from __future__ import annotations

import numpy as np
import pytest

from detkd.evaluation.corruptions.noise import gaussian_noise, impulse_noise, shot_noise

GREY = np.full((200, 300, 3), 102, np.uint8)  # 0.4


@pytest.mark.parametrize(("severity", "std"), [(1, 0.08), (2, 0.12)])
def test_gaussian_noise_has_its_standard_deviation(severity: int, std: float) -> None:
    added = gaussian_noise(GREY, severity, np.random.default_rng(0)) / 255 - 0.4
    assert added.mean() == pytest.approx(0, abs=0.001)
    assert added.std() == pytest.approx(std, rel=0.01)
    assert abs(np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]) < 0.02  # a draw of its own for each channel


@pytest.mark.parametrize(("severity", "photons"), [(1, 60), (2, 25), (3, 12)])
def test_shot_noise_counts_photons(severity: int, photons: int) -> None:
    noisy = shot_noise(GREY, severity, np.random.default_rng(0)) / 255
    assert noisy.mean() == pytest.approx(0.4, abs=0.003)
    assert noisy.var() == pytest.approx(0.4 / photons, rel=0.05)  # variance of a count is its mean
    counts = np.unique(noisy * photons)
    np.testing.assert_allclose(counts, counts.round(), atol=photons / 255)
    np.testing.assert_array_equal(shot_noise(np.zeros_like(GREY), severity, np.random.default_rng(0)), 0)


@pytest.mark.parametrize(("severity", "amount"), [(1, 0.03), (5, 0.27)])
def test_impulse_noise_sets_its_share_of_values(severity: int, amount: float) -> None:
    noisy = impulse_noise(GREY, severity, np.random.default_rng(0))
    black, white = (noisy == 0).mean(), (noisy == 255).mean()
    assert black == pytest.approx(amount / 2, rel=0.06)
    assert white == pytest.approx(amount / 2, rel=0.06)
    assert (noisy == 102).mean() == pytest.approx(1 - black - white)
