"""R_TV: total variation of the image. Source: DIODE (Chawla et al., WACV 2021), equation 4, in its released form."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.step import Step


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference to neighbours, summed over 4 directions (right, down, both diagonals), scalar float32.

    images: (B, 3, H, W). A *mean* over pixels, so that weights hold at any resolution; equation 4 sums two directions.
    A direction in which the image is one pixel wide counts 0.
    """
    x = images.float()
    differences = (
        x[:, :, :, 1:] - x[:, :, :, :-1],
        x[:, :, 1:, :] - x[:, :, :-1, :],
        x[:, :, 1:, 1:] - x[:, :, :-1, :-1],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
    )
    total = x.new_zeros(())
    for d in differences:
        if d.numel():
            total = total + d.abs().mean()
    return total


class TotalVariation(nn.Module):
    """Total variation of the images. of: "augmented" as the network sees them (the released code), or "clean"."""

    pools_batch = False
    needs_teacher = False

    def __init__(self, of: Literal["augmented", "clean"] = "augmented") -> None:
        super().__init__()
        if of not in ("augmented", "clean"):
            raise InputError(f"tv.of: expected 'augmented' or 'clean', got {of!r}")
        self.of = of

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Needs nothing."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        clean = self.of == "clean" and step.clean_images is not None
        return {"tv": total_variation(step.clean_images if clean and step.clean_images is not None else step.images)}
