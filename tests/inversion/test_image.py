from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from detkd.errors import InputError
from detkd.inversion.fourier import FourierFactory
from detkd.inversion.image import ImageFactory, Pixels, PixelsFactory, Pyramid, PyramidFactory

FACTORIES: list[ImageFactory] = [
    PixelsFactory(),
    PyramidFactory(levels=4),
    PyramidFactory(levels=4, colors="rgb"),
    PyramidFactory(levels=4, falloff=0.5),
    FourierFactory(),
    FourierFactory(colors="rgb", decay=0.5),
]
IDS = ["pixels", "pyramid", "pyramid-rgb", "pyramid-falloff", "fourier", "fourier-rgb"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("factory", FACTORIES, ids=IDS)
def test_noise_is_in_range_and_depends_on_the_generator_alone(factory: ImageFactory) -> None:
    a, again, other = (factory.noise(2, (16, 24), generator(s))() for s in (0, 0, 1))
    assert a.shape == (2, 3, 16, 24)
    assert 0 <= a.min() < a.max() <= 1
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    torch.rand(5)  # the global state plays no part
    assert torch.equal(a, factory.noise(2, (16, 24), generator(0))())


@pytest.mark.parametrize("factory", FACTORIES, ids=IDS)
def test_every_parameter_gets_a_gradient(factory: ImageFactory) -> None:
    image = factory.noise(2, (16, 16), generator())
    weights = torch.rand(2, 3, 16, 16, generator=generator(1))
    (image() * weights).sum().backward()
    for parameter in image.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (32, 9), (5, 3), (1, 1)])
@pytest.mark.parametrize("factory", FACTORIES, ids=IDS)
def test_resume_gives_the_images_back(factory: ImageFactory, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, generator=generator())
    images[0, 0, 0] = torch.linspace(0, 1, size[1])
    torch.testing.assert_close(factory.resume(images, size)(), images, atol=1.1e-3, rtol=0)


@pytest.mark.parametrize("factory", FACTORIES, ids=IDS)
def test_resume_at_another_size_resizes(factory: ImageFactory) -> None:
    images = torch.rand(1, 3, 8, 8, generator=generator())
    expected = F.interpolate(images, size=(20, 12), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    torch.testing.assert_close(factory.resume(images, (20, 12))(), expected, atol=1.1e-3, rtol=0)


@pytest.mark.parametrize("factory", FACTORIES, ids=IDS)
def test_images_are_float32_under_autocast(factory: ImageFactory) -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator())
    plain = factory.resume(images, (16, 16))()
    with torch.autocast("cpu", torch.bfloat16):
        image = factory.resume(images, (16, 16))  # a later stage
        assert all(parameter.dtype == torch.float32 for parameter in image.parameters())
        assert torch.equal(image(), plain)


def test_pixels_are_projected_by_clamping_and_copy_what_they_were_given() -> None:
    given = torch.tensor([-0.5, 0.25, 1.5]).view(1, 3, 1, 1)
    image = Pixels(given)
    assert image().flatten().tolist() == [0, 0.25, 1]
    with torch.no_grad():
        image.pixels.add_(torch.tensor([-1.0, 0.5, 3.0]).view(1, 3, 1, 1))
    image.project()
    assert image().flatten().tolist() == [0, 0.75, 1]
    assert given.flatten().tolist() == [-0.5, 0.25, 1.5]


def test_noise_of_pixels_has_the_mean_and_spread_asked_for() -> None:
    values = PixelsFactory(mean=0.5, std=0.05).noise(4, (64, 64), generator())().flatten()
    assert values.mean().item() == pytest.approx(0.5, abs=2e-3)
    assert values.std().item() == pytest.approx(0.05, abs=2e-3)


def test_a_pyramid_of_one_map_is_a_sigmoid() -> None:
    values = torch.randn(1, 3, 4, 4, generator=generator())
    image = Pyramid([values])
    image.project()
    torch.testing.assert_close(image(), values.sigmoid())


def test_maps_halve_and_stop_at_two_pixels() -> None:
    assert [tuple(m.shape[-2:]) for m in PyramidFactory(levels=9).noise(1, (20, 33), generator()).maps] == [
        (20, 33),
        (10, 17),
        (5, 9),
        (3, 5),
    ]
    assert len(PyramidFactory(levels=2).noise(1, (64, 64), generator()).maps) == 2
    assert [tuple(m.shape[-2:]) for m in PyramidFactory().noise(1, (8, 8), generator()).maps] == [(8, 8), (4, 4), (2, 2)]


def test_a_coarse_map_moves_whole_regions() -> None:
    image = PyramidFactory(levels=3, std=0.0).noise(1, (16, 16), generator())
    before = image().detach()
    with torch.no_grad():
        image.maps[-1][0, 0, 1, 1] = 4.0
    changed = (image().detach() - before)[0, 0] > 0.01
    assert changed.sum() >= 16
    assert not changed[12:].any()


def test_natural_colours_move_brightness_most() -> None:
    flat = torch.full((1, 3, 1, 1), 0.5)
    moved = []
    for channel in range(3):
        image = PyramidFactory(levels=1).resume(flat, (1, 1))
        with torch.no_grad():
            image.maps[0][0, channel] += 0.1
        moved.append((image() - flat).detach().flatten())
    brightness, *hues = moved
    assert (brightness > 0).all()
    assert brightness.max() < 1.1 * brightness.min()  # a grey step
    for hue in hues:
        assert hue.abs().max() < 0.5 * brightness.min()
        assert hue.sum().abs() < 0.3 * hue.abs().sum()  # a change of colour


def test_rgb_maps_are_the_channels() -> None:
    image = PyramidFactory(levels=1, std=0.0, colors="rgb").noise(1, (2, 2), generator())
    with torch.no_grad():
        image.maps[0][0, 1] = 1.0
    assert image()[0, :, 0, 0].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1)), 0.5])


def test_no_level_and_unknown_colours_are_errors() -> None:
    with pytest.raises(InputError, match="at least one level, got 0"):
        PyramidFactory(levels=0)
    with pytest.raises(InputError, match="natural or rgb, got 'hsv'"):
        PyramidFactory(colors="hsv")
    with pytest.raises(InputError, match="natural or rgb, got 'hsv'"):
        FourierFactory(colors="hsv")
    with pytest.raises(InputError, match=r"image\.decay: expected a power from 0, got -1"):
        FourierFactory(decay=-1)


def test_falloff_weighs_fine_maps_less() -> None:
    values = torch.randn(2, 3, 8, 8, generator=generator())
    maps = [values, torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)]
    torch.testing.assert_close(Pyramid(maps, falloff=0.5)(), (values / 4).sigmoid())
    coarse = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4), values[:, :, :2, :2]]
    torch.testing.assert_close(Pyramid(coarse, falloff=0.5)(), Pyramid(coarse)())


@pytest.mark.parametrize("falloff", [0, -0.5, 1.5])
def test_falloff_is_a_fraction(falloff: float) -> None:
    with pytest.raises(InputError, match=r"image\.falloff: expected a factor above 0, at most 1, got"):
        PyramidFactory(falloff=falloff)
