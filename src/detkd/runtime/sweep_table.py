"""The table of a sweep, made when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from detkd.errors import InputError
from detkd.runtime.ending import at_end
from detkd.runtime.run import CONFIG_FILE, fail
from detkd.runtime.table_output import write_table
from detkd.runtime.table_settings import TableSettings, check_settings


class WriteTable(Callback):
    """Write the table of a sweep's runs into its folder and print it, also where the sweep ends with an error.

    Args: as in conf/table.yaml; ``out`` is another folder for the table, so that several sweeps can share their runs. Settings that cannot be are an error before the first job. Rows that are listed are shown as holes
    where they have no run.
    """

    def __init__(
        self,
        row_key: str = "row",
        column_key: str | None = "column",
        value: str = "ap50",
        rows: list[str] | None = None,
        columns: list[str] | None = None,
        digits: int = 3,
        plot: str = "dots",
        relative_to: str | None = None,
        constants: dict[str, Any] | None = None,
        out: str | None = None,
    ) -> None:
        self._out = out
        self._given = (row_key, column_key, value, rows, columns, digits, plot, relative_to, constants)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the settings, and have the table written at the end; of several processes by the first."""
        if getattr(rank_zero_only, "rank", 0):
            return
        try:
            settings = check_settings(*self._given)
            folder = Path(str(config.hydra.sweep.dir)).resolve()
            out = folder if self._out is None else Path(self._out).resolve()
        except InputError as error:
            fail(InputError(f"hydra.callbacks.table.{error}"))
        except OmegaConfBaseException:  # a value is missing: Hydra says which
            pass
        else:
            at_end(lambda failed: finish_sweep(settings, folder, out, failed))


def finish_sweep(settings: TableSettings, folder: Path, out: Path, failed: bool) -> None:
    """Write and print the table of a sweep that has ended; one that failed before any of its jobs began has none."""
    if failed and next(folder.rglob(CONFIG_FILE), None) is None:
        return
    try:
        _, text = write_table(settings, folder, out, none_ok=True)
    except InputError as error:
        raise InputError(f"no table of the runs in {folder}: {error}") from None
    print(f"{out / 'table.md'}:\n\n{text}", flush=True)
    if failed:
        print("The sweep ended with an error before all its jobs were done: the table shows what there is.", flush=True)
