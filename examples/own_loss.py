"""A loss term of your own, from Python and from the command line. Seconds on a CPU:

    python examples/own_loss.py

The same term in a run, in this folder (docs/guides/own_loss.md):

    python -m detkd.invert +loss.saturation._target_=own_loss.Saturation +loss.saturation.weight=0.5
    python -m detkd.invert --config-dir conf "loss=[detection,bn_stats,tv,saturation]"
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.losses.composite import Composite
from detkd.losses.step import Step
from detkd.losses.tv import TotalVariation


def saturation(images: Tensor, limit: float = 0.0) -> Tensor:
    """Mean over pixels of how far the largest minus the smallest channel exceeds ``limit``; (B, 3, H, W) to a float32 scalar."""
    spread = images.float().amax(1) - images.float().amin(1)  # (B, H, W)
    return (spread - limit).clamp(min=0).mean()


class Saturation(nn.Module):
    """Keep the images under optimisation from turning garish."""

    pools_batch = False  # the value of a batch is the mean of those of its images
    needs_teacher = False  # distillation need not run the teacher for it

    def __init__(self, limit: float = 0.0) -> None:
        super().__init__()
        self.limit = limit

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Nothing to check, nothing to build."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        images = step.images if step.clean_images is None else step.clean_images
        return {"saturation": saturation(images, self.limit)}


def main() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    loss = Composite({"tv": TotalVariation(), "saturation": Saturation(limit=0.2)}, {"tv": 1.0, "saturation": 0.5})
    loss.setup(None, None)
    total, parts = loss(Step(images))
    print(" + ".join(f"{loss.weight(name)} x {name} {value:.3f}" for name, value in parts.items()), f"= {total:.3f}")
    (gradient,) = torch.autograd.grad(total, images)
    print(f"gradient at the pixels: {gradient.abs().sum():.3f}")


if __name__ == "__main__":
    main()
