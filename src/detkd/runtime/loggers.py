"""Where a run's numbers go while it runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from omegaconf import DictConfig

from detkd.errors import InputError


def build_loggers(node: DictConfig | None, folder: Path) -> list[Logger]:
    """The logger of the config, and beside any other the csv: metrics.csv in the run's folder. None for logger=none."""
    if not node:
        return []
    logger: Logger = instantiate(node)
    return [logger] if isinstance(logger, CSVLogger) else [logger, CSVLogger(str(folder), name="", version="")]


def tensorboard_logger(save_dir: str) -> TensorBoardLogger:
    """Events for TensorBoard in ``save_dir``/tensorboard. Raises InputError with the line that installs what it needs."""
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise InputError("logger=tensorboard: expected the package tensorboard, found none; pip install 'detkd[tensorboard]'")
    return TensorBoardLogger(save_dir, name="tensorboard", version="", default_hp_metric=False)
