"""The files of a table: Markdown, csv, json and a picture."""

from __future__ import annotations

from pathlib import Path

from detkd.errors import InputError
from detkd.runtime.run import write_json, write_text
from detkd.runtime.table import Table, make_table
from detkd.runtime.table_dots import dots_figure
from detkd.runtime.table_lines import lines_figure
from detkd.runtime.table_runs import read_runs
from detkd.runtime.table_settings import TableSettings, check_numeric

FIGURES = {"dots": dots_figure, "lines": lines_figure}


def write_table(settings: TableSettings, runs: str | Path, out: str | Path, none_ok: bool = False) -> tuple[Table, str]:
    """Read all runs below a folder; write table.md, table.csv, table.json and table.png into ``out``. Gives the Markdown too.

    none_ok: whether a table of holes may be made where there is no run. With plot none an earlier table.png is removed.
    Raises InputError, before anything is written, where runs or settings do not make a table.
    """
    keys = [key for key in (settings.row_key, settings.column_key) if key is not None]
    table = make_table(
        read_runs(runs, settings.value, keys, none_ok),
        settings.row_key,
        settings.column_key,
        settings.value,
        settings.rows,
        settings.columns,
        settings.constants,
    )
    if not (table.rows and table.columns):
        raise InputError(f"{runs}: expected runs with {' and '.join(keys)} in their configs, found none")
    if settings.plot == "lines":
        check_numeric(table.column_key, table.columns)
    text = table.markdown(settings.digits)
    if settings.relative_to is not None:
        text += "\n" + table.relative_markdown(settings.relative_to, settings.digits)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.md", text)
    write_text(out / "table.csv", table.csv())
    write_json(out / "table.json", table.to_json(settings.relative_to))
    if settings.plot in FIGURES:
        FIGURES[settings.plot](table, out / "table.png")
    else:
        (out / "table.png").unlink(missing_ok=True)
    return table, text
