"""A strategy for processes that work side by side and share nothing."""

from __future__ import annotations

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy


class IndependentDDP(DDPStrategy):
    """Lightning's launchers and ranks without DistributedDataParallel and without a process group.

    Inversion runs in several processes whose images have nothing to do with each other: DDP would average their gradients, and
    Lightning would let each wait for the slowest in every step. They agree through the folder that they write to. torchrun, SLURM
    and Lightning's own subprocess launcher work as they do for DDP.
    """

    def setup_distributed(self) -> None:
        """Learn which process this is; nothing connects them."""
        reset_seed()
        self.set_world_ranks()

    def configure_ddp(self) -> None:
        """Wrap nothing."""
