"""The bar of an inversion: how many steps there will be is known only about."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar

from detkd.inversion.module import InversionModule
from detkd.inversion.writer import StoreBatches


class InversionProgressBar(RichProgressBar):
    """Lightning's bar over the steps of this process's share of the batches, if all are accepted at once."""

    @property
    def total_train_batches(self) -> int | float:
        """Steps to come when the bar was made."""
        module = self.trainer.lightning_module
        assert isinstance(module, InversionModule)
        batches = module.batches
        missing = module.n_batches
        if isinstance(batches, StoreBatches):
            missing = -(-len(batches.missing()) // batches.turns)
        return missing * sum(stage.iterations for stage in module.stages)
