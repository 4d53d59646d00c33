"""python -m detkd.table: put the results of many runs into one table."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from detkd.errors import InputError
from detkd.runtime.run import entry_point, write_json, write_text
from detkd.runtime.table import Table, make_table, read_runs


@entry_point("table")
def main(cfg: DictConfig) -> Table:
    """Read all runs below a folder; write table.md, table.csv and table.json there or where ``out`` says."""
    if not isinstance(cfg.runs, str):
        raise InputError(
            f"runs: expected one folder with runs below it, like runs=runs/terms/students, found {cfg.runs or 'none'}"
        )
    if not (isinstance(cfg.digits, int) and 0 <= cfg.digits <= 9):
        raise InputError(f"digits: expected a whole number from 0 to 9, found {cfg.digits!r}")
    table = make_table(
        read_runs(cfg.runs, cfg.value), cfg.row_key, cfg.column_key, cfg.value, _names(cfg.rows), _names(cfg.columns)
    )
    out = Path(cfg.out or cfg.runs)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.md", table.markdown(cfg.digits))
    write_text(out / "table.csv", table.csv())
    write_json(out / "table.json", table.to_json())
    print(table.markdown(cfg.digits))
    return table


def _names(node: object) -> list[str] | None:
    """Names of rows or columns as the command line gives them, one or several; numbers too, like seeds."""
    return None if node is None else [str(name) for name in (node if isinstance(node, ListConfig) else [node])]


if __name__ == "__main__":
    main()
