"""Channels in which images are optimised, and the way from them to RGB."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from detkd.errors import InputError

# How the colours of natural images vary, as the columns of a square root of their covariance: brightness, blue to yellow, green to
# purple. The values of C. Olah et al., "Feature Visualization", Distill, 2017 (preconditioning), scaled below by one factor.
NATURAL_COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))

Colors = Literal["natural", "rgb"]


def color_matrix(colors: Colors) -> Tensor | None:
    """The (3, 3) matrix from channels to RGB before the sigmoid: "natural" has brightness and two hues, so that one step moves brightness
    most, as images vary; None for "rgb", which optimises the three channels alike.

    Raises InputError for anything else.
    """
    if colors not in ("natural", "rgb"):
        raise InputError(f"image.colors: expected natural or rgb, got {colors!r}")
    if colors == "rgb":
        return None
    matrix = torch.tensor(NATURAL_COLORS)
    return matrix / matrix.norm(dim=0).max() * 3**0.5


def to_rgb(channels: Tensor, matrix: Tensor | None) -> Tensor:
    """Images (B, 3, H, W) in [0, 1]: the sigmoid of ``matrix`` times the channels."""
    if matrix is not None:
        # Without autocast: a bfloat16 has 8 bits, and an image needs 8 after the sigmoid.
        with torch.autocast(channels.device.type, enabled=False):
            channels = (matrix @ channels.flatten(2)).view_as(channels)
    return channels.sigmoid()


def from_rgb(images: Tensor, matrix: Tensor | None) -> Tensor:
    """Inverse of :func:`to_rgb`; what is nearer than .001 to black or white is taken for that."""
    channels = torch.logit(images, eps=1e-3)
    if matrix is not None:
        with torch.autocast(channels.device.type, enabled=False):
            channels = torch.einsum("cr,brhw->bchw", torch.linalg.inv(matrix).to(channels), channels)
    return channels
