"""A strategy for processes that work side by side and average nothing."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy


class IndependentDDP(DDPStrategy):
    """Lightning's launchers, ranks and barriers without DistributedDataParallel.

    Inversion runs in several processes whose images have nothing to do with each other: DDP would average their gradients.
    torchrun, SLURM and Lightning's own subprocess launcher work as they do for DDP.
    """

    def configure_ddp(self) -> None:
        """Wrap nothing."""
