"""Where a run's numbers go while it runs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from detkd.errors import InputError


def build_loggers(node: DictConfig | None, folder: Path) -> list[Logger]:
    """The logger of the config, and beside any other the csv: metrics.csv in the run's folder. None for logger=none.

    Raises InputError for Weights & Biases without a login, and for a package that is not there.
    """
    if not node:
        return []
    logger: Logger = instantiate(node)
    if isinstance(logger, WandbLogger) and not node.get("offline") and getattr(rank_zero_only, "rank", 0) == 0:
        _log_in()
    return [logger] if isinstance(logger, CSVLogger) else [logger, CSVLogger(str(folder), name="", version="")]


def _log_in() -> None:
    """Raise InputError now where Weights & Biases would ask for a login, or refuse its settings, when the run has begun."""
    import wandb

    try:
        if os.environ.get("WANDB_MODE", "online") in ("online", "run", "shared"):
            wandb.login()
        else:
            wandb.setup()  # checks the variables of the environment
    except (wandb.Error, ValueError) as error:
        raise InputError(
            f"logger=wandb: expected a login (`wandb login`, or WANDB_API_KEY), or logger.offline=true, which keeps the run on disk; "
            f"Weights & Biases says: {' '.join(str(error).split())}"
        ) from None


def tensorboard_logger(save_dir: str) -> TensorBoardLogger:
    """Events for TensorBoard in ``save_dir``/tensorboard. Raises InputError with the line that installs what it needs."""
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise InputError("logger=tensorboard: expected the package tensorboard, found none; pip install 'detkd[tensorboard]'")
    return TensorBoardLogger(save_dir, name="tensorboard", version="", default_hp_metric=False)
