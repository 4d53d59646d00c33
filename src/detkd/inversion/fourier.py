"""Images under optimisation as a spectrum whose low frequencies move most.

Source: C. Olah, A. Mordvintsev, L. Schubert, "Feature Visualization", Distill, 2017 (preconditioning).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkd.data.tile import resized
from detkd.errors import InputError
from detkd.inversion.colors import Colors, color_matrix, from_rgb, to_rgb


class Fourier(nn.Module):
    """Sigmoid of the inverse Fourier transform of a weighted spectrum.

    Args:
        spectrum: (B, 3, H, W // 2 + 1) complex, of a real image of the size (H, W), before its weights.
        size: (H, W). colors: from channels to RGB, see :func:`color_matrix`. decay: see :func:`amplitudes`.
    """

    amplitudes: Tensor
    colors: Tensor | None

    def __init__(self, spectrum: Tensor, size: tuple[int, int], colors: Tensor | None = None, decay: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.spectrum = nn.Parameter(torch.view_as_real(spectrum).clone(memory_format=torch.contiguous_format))
        self.register_buffer("amplitudes", amplitudes(size, decay).to(spectrum.device))
        self.register_buffer("colors", colors)

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex(self.spectrum * self.amplitudes[:, :, None])  # (B, 3, H, W // 2 + 1)
        return to_rgb(torch.fft.irfft2(spectrum, s=self.size, norm="ortho"), self.colors)

    def project(self) -> None:
        """Nothing to do: a sigmoid is in [0, 1]."""


class FourierFactory:
    """A spectrum drawn from N(0, std), real and imaginary parts alike.

    std: of the images before the sigmoid, about, for each of their channels. decay: amplitudes fall with the frequency to this power; 1 is
    how natural images are, 0 moves all frequencies alike. colors: see :func:`color_matrix`.

    Raises InputError for a negative decay and unknown colours.
    """

    def __init__(self, std: float = 0.1, colors: Colors = "natural", decay: float = 1.0) -> None:
        if not decay >= 0:
            raise InputError(f"image.decay: expected a power from 0, got {decay}")
        self.std, self.decay, self.colors = std, decay, color_matrix(colors)

    def noise(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Fourier:
        draws = torch.randn(count, 3, size[0], size[1] // 2 + 1, 2, generator=generator, device=generator.device)
        return Fourier(torch.view_as_complex(draws * self.std), size, self.colors, self.decay)

    def resume(self, images: Tensor, size: tuple[int, int]) -> Fourier:
        spectrum = torch.fft.rfft2(from_rgb(resized(images, size), self.colors), norm="ortho")
        return Fourier(spectrum / amplitudes(size, self.decay).to(images.device), size, self.colors, self.decay)


def amplitudes(size: tuple[int, int], decay: float) -> Tensor:
    """(H, W // 2 + 1) weights of a spectrum: max(f, 1 / longer side) ** -decay at f cycles a pixel, scaled by one factor.

    The factor makes the variance of an image equal to that of the real part of a coefficient, where all coefficients are drawn alike.
    """
    height, width = size
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    weights = torch.hypot(rows, columns).clamp(min=1 / max(size)) ** -decay
    mirrored = torch.full((width // 2 + 1,), 2.0)  # how often each column stands in the whole spectrum
    mirrored[0] = 1
    if width % 2 == 0:
        mirrored[-1] = 1
    power = (weights.square() * mirrored).sum() / (height * width)
    return weights / (2 * power).sqrt()
