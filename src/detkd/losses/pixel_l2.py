"""The l2 prior on pixels: ||x||_2^2. Source: DIODE (Chawla et al., WACV 2021), equation 3; its scripts leave it at 0."""

from __future__ import annotations

from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.losses.step import Step


def pixel_l2(images: Tensor) -> Tensor:
    """Mean square over (B, 3, H, W) pixels, scalar float32. A mean, where the paper sums, so that resolution does not matter."""
    return images.float().square().mean()


class PixelL2(nn.Module):
    """Mean square of the un-augmented pixels."""

    pools_batch = False
    needs_teacher = False

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Needs nothing."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"pixel_l2": pixel_l2(step.images if step.clean_images is None else step.clean_images)}
