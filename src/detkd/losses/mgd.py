"""MGD: the teacher's neck maps made from the student's with cells left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.losses.connectors import Connectors, full
from detkd.losses.reduce import rank
from detkd.losses.step import Step


def mgd_loss(student: Tensor, teacher: Tensor, keep: Tensor, generate: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean square difference of ``generate(keep * student)`` and the teacher, over images, channels and cells.

    Args:
        student, teacher: (B, C, H, W), of one shape. The teacher gets no gradient. keep: (B or 1, 1, H, W), true for cells that are kept.
        generate: (B, C, H, W) to the same shape.

    Returns:
        scalar >= 0; float64 for float64, else float32. ``generate`` runs under autocast like any layer; the difference is in float32.

    Source: Yang et al., Masked Generative Distillation, ECCV 2022, equations 2 to 4. The released code sums over elements and weights the sum
    with 2e-5; a mean does not grow with the map.
    """
    return (full(generate(student * keep.to(student))) - full(teacher.detach())).square().mean()


def generation_block(channels: int) -> nn.Sequential:
    """3x3 convolution, ReLU, 3x3 convolution, of ``channels`` throughout (equation 3)."""
    first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(inplace=True), second)


class MGD(nn.Module):
    """The student's neck maps hold enough to make the teacher's from a part of them; see :func:`mgd_loss`, summed over levels.

    Args:
        mask: probability that a cell is left out, in [0, 1). seed: of the masks. levels: see :func:`~detkd.losses.connectors.match_levels`.

    pools_batch: False; needs_teacher: True. Channels that differ go through a 1x1 convolution; a generation block a level comes behind it. Both
    are trained with the loss and are no part of the student.

    Masks come from (seed, number of the call, process), so the global random state is untouched; the number is part of the state dict, so a
    resumed run goes on with the masks that are next. In eval mode all images get one mask, always the same, so that losses on held-out
    images compare. Raises InputError for a mask out of range.
    """

    pools_batch = False
    needs_teacher = True

    def __init__(self, mask: float = 0.65, seed: int = 0, levels: Sequence[str] | None = None) -> None:
        super().__init__()
        if not 0 <= mask < 1:
            raise InputError(f"loss.mgd.mask: expected a probability in [0, 1), got {mask}")
        self.mask, self.seed, self.calls = float(mask), seed, 0
        self.connectors = Connectors(levels=levels)
        self.blocks = nn.ModuleList()

    def setup(self, student: Detector | None, teacher: Detector | None) -> None:
        """Pair the levels, build connectors and generation blocks. Raises InputError where levels do not match."""
        self.connectors.setup(student, teacher, "mgd")
        assert student is not None
        parameter = next(student.parameters())
        self.blocks.extend(generation_block(channels).to(parameter) for channels in self.connectors.channels.values())

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One part, "mgd": float32 scalar."""
        generator = self._generator()
        values = []
        for block, (student, teacher) in zip(self.blocks, self.connectors(step).values()):
            shape = (len(student) if self.training else 1, 1, *student.shape[-2:])
            keep = (torch.rand(shape, generator=generator) >= self.mask).to(student.device, non_blocking=True)
            values.append(mgd_loss(student, teacher, keep, block))
        return {"mgd": torch.stack(values).sum().float()}

    def get_extra_state(self) -> Tensor:
        """The number of calls in training."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of :meth:`get_extra_state`."""
        self.calls = int(state)

    def _generator(self) -> torch.Generator:
        place = (self.seed, 0, 0)
        if self.training:
            self.calls += 1
            place = (self.seed, self.calls, rank())
        digest = hashlib.sha256(repr(place).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
