"""The folder of a run, made before Hydra makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from detkd.errors import InputError
from detkd.runtime.run import fail


class MakeFolder(Callback):
    """Make the run's folder, or print why it cannot be made and leave with status 2; Hydra would end in a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make ``hydra.run.dir``."""
        _make(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make ``hydra.sweep.dir``."""
        _make(config, "sweep")


def _make(config: DictConfig, mode: str) -> None:
    try:
        folder = Path(str(config.hydra[mode].dir))
    except OmegaConfBaseException:  # a value is missing: Hydra says which
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(
            InputError(f"out={folder}: expected a folder that can be made or written, found that it cannot ({error.strerror})")
        )
