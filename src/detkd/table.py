"""python -m detkd.table: put the results of many runs into one table."""

from __future__ import annotations

from omegaconf import DictConfig

from detkd.errors import InputError
from detkd.runtime.run import entry_point
from detkd.runtime.table import Table
from detkd.runtime.table_output import write_table
from detkd.runtime.table_settings import check_settings


@entry_point("table")
def main(cfg: DictConfig) -> Table:
    """Read all runs below a folder; write table.md, table.csv, table.json and table.png there or where ``out`` says."""
    if not isinstance(cfg.runs, str):
        raise InputError(
            f"runs: expected one folder with runs below it, like runs=runs/terms/students, found {cfg.runs or 'none'}"
        )
    settings = check_settings(
        row_key=cfg.row_key,
        column_key=cfg.column_key,
        value=cfg.value,
        rows=cfg.rows,
        columns=cfg.columns,
        digits=cfg.digits,
        plot=cfg.plot,
        relative_to=cfg.relative_to,
        constants=cfg.constants,
    )
    table, text = write_table(settings, cfg.runs, cfg.out or cfg.runs)
    print(text)
    return table


if __name__ == "__main__":
    main()
