"""How the images under optimisation are parametrised: free pixels, or a pyramid of maps from coarse to fine (a spectrum: fourier.py).

The parametrisation matters as much as the loss: a pyramid lets one step move whole regions, and reaches plausible colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkd.data.tile import resized
from detkd.errors import InputError
from detkd.inversion.colors import Colors, color_matrix, from_rgb, to_rgb
from detkd.inversion.doubling import doubled


class Image(Protocol):
    """Images (B, 3, H, W) in [0, 1] as a function of parameters; an ``nn.Module``."""

    def __call__(self) -> Tensor:
        """The images. Differentiable in the parameters."""
        ...

    def project(self) -> None:
        """Bring the parameters back to where images are in [0, 1]; called after every optimiser step."""
        ...

    def parameters(self) -> list[nn.Parameter]: ...


class Pixels(nn.Module):
    """The pixels themselves, clamped to [0, 1] after every step (DIODE)."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.pixels = nn.Parameter(images.clamp(0, 1).clone(memory_format=torch.contiguous_format))

    def forward(self) -> Tensor:
        return self.pixels

    @torch.no_grad()
    def project(self) -> None:
        self.pixels.clamp_(0, 1)


class Pyramid(nn.Module):
    """Sigmoid of a weighted sum of maps of 1, 1/2, 1/4, ... size, bilinearly upsampled.

    Args:
        maps: finest first, each (B, 3, h, w).
        colors: from the maps' channels to RGB, see :func:`color_matrix`.
        falloff: weight of a map relative to that of the next coarser; the coarsest has 1.
    """

    colors: Tensor | None

    def __init__(self, maps: list[Tensor], colors: Tensor | None = None, falloff: float = 1.0) -> None:
        super().__init__()
        self.falloff = falloff
        self.maps = nn.ParameterList([nn.Parameter(m.clone()) for m in maps])
        self.register_buffer("colors", colors)

    def forward(self) -> Tensor:
        total, weight = self.maps[-1], 1.0
        for finer in reversed(self.maps[:-1]):  # upsampling level by level is a bilinear pyramid, at a third of the cost
            weight *= self.falloff
            total = torch.add(_enlarged(total, finer.shape[-2:]), finer, alpha=weight)
        return to_rgb(total, self.colors)

    def project(self) -> None:
        """Nothing to do: a sigmoid is in [0, 1]."""


def quantise(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


class ImageFactory(Protocol):
    """Makes the parameters of a batch."""

    def noise(self, count: int, size: tuple[int, int], generator: torch.Generator) -> nn.Module:
        """Random images to start from, drawn from ``generator`` on its device."""
        ...

    def resume(self, images: Tensor, size: tuple[int, int]) -> nn.Module:
        """Start from given images (B, 3, h, w), brought to ``size`` = (height, width)."""
        ...


class PixelsFactory:
    """Free pixels; noise N(0, 1) clamped to [0, 1] (DIODE, released code) times ``std`` around ``mean``."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean, self.std = mean, std

    def noise(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Pixels:
        draws = torch.randn(count, 3, *size, generator=generator, device=generator.device)
        return Pixels(draws * self.std + self.mean)

    def resume(self, images: Tensor, size: tuple[int, int]) -> Pixels:
        return Pixels(resized(images, size))


class PyramidFactory:
    """A pyramid of up to ``levels`` maps (the coarsest at least 2 pixels a side), drawn from N(0, std).

    falloff: weight of a map relative to that of the next coarser. An optimiser moves all maps at one rate, so below 1 fine detail
    forms more slowly: a prior for teachers that tolerate noise.
    colors: see :func:`color_matrix`.
    """

    def __init__(self, levels: int = 6, std: float = 0.1, colors: Colors = "natural", falloff: float = 1.0) -> None:
        if levels < 1:
            raise InputError(f"image.levels: expected at least one level, got {levels}")
        if not 0 < falloff <= 1:
            raise InputError(f"image.falloff: expected a factor above 0, at most 1, got {falloff}")
        self.levels, self.std, self.falloff, self.colors = levels, std, falloff, color_matrix(colors)

    def noise(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Pyramid:
        return Pyramid(
            [torch.randn(count, 3, *s, generator=generator, device=generator.device) * self.std for s in self._sizes(size)],
            self.colors,
            self.falloff,
        )

    def resume(self, images: Tensor, size: tuple[int, int]) -> Pyramid:
        """Split the logit of the images into bands, coarse first, so that the pyramid gives the images back."""
        rest = from_rgb(resized(images, size), self.colors)
        sizes = self._sizes(size)
        maps = []
        for s in reversed(sizes[1:]):
            band = F.interpolate(rest, size=s, mode="area")
            maps.append(band)
            total = band
            for finer in reversed(sizes[: len(sizes) - len(maps)]):
                total = _enlarged(total, finer)
            rest = rest - total
        maps = [rest, *reversed(maps)]
        return Pyramid([m / self.falloff ** (len(maps) - 1 - i) for i, m in enumerate(maps)], self.colors, self.falloff)

    def _sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        sizes = [size]
        while len(sizes) < self.levels and min(sizes[-1]) >= 4:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return sizes


def _enlarged(images: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinearly upsampled to ``size``."""
    if (2 * images.shape[-2], 2 * images.shape[-1]) == tuple(size):
        return doubled(images)
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False)
