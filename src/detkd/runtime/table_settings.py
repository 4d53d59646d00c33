"""What a table is to show, checked: the keys that conf/table.yaml and a sweep's callback share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from detkd.errors import InputError
from detkd.runtime.table import number

PLOTS = ("dots", "lines", "none")
Constants = Mapping[str, float | Mapping[str, float]]


@dataclass(frozen=True)
class TableSettings:
    """Checked settings; conf/table.yaml says what each is."""

    row_key: str
    column_key: str | None
    value: str
    rows: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    digits: int
    plot: str
    relative_to: str | None
    constants: Constants


def check_settings(
    row_key: Any = "row",
    column_key: Any = "column",
    value: Any = "ap50",
    rows: Any = None,
    columns: Any = None,
    digits: Any = 3,
    plot: Any = "dots",
    relative_to: Any = None,
    constants: Any = None,
) -> TableSettings:
    """Settings as a config has them, one name or a list, numbers for names. Raises InputError naming the key."""
    for key, given in (("row_key", row_key), ("value", value), ("column_key", column_key)):
        if not (isinstance(given, str) and given) and not (key == "column_key" and given is None):
            raise InputError(f"{key}: expected a dotted key, found {given!r}")
    if not (isinstance(digits, int) and not isinstance(digits, bool) and 0 <= digits <= 9):
        raise InputError(f"digits: expected a whole number from 0 to 9, found {digits!r}")
    if plot not in PLOTS:
        raise InputError(f"plot: expected one of {list(PLOTS)}, found {plot!r}")
    made = TableSettings(
        row_key=row_key,
        column_key=column_key,
        value=value,
        rows=_names("rows", rows),
        columns=_names("columns", columns),
        digits=digits,
        plot=plot,
        relative_to=None if relative_to is None else str(relative_to),
        constants=_constants(constants),
    )
    if column_key is None and made.columns is not None:
        raise InputError(f"columns: expected null where column_key is null, found {list(made.columns)}")
    if plot == "lines":
        check_numeric(column_key, made.columns or ())
    return made


def check_numeric(column_key: str | None, columns: tuple[str, ...]) -> None:
    """Raise InputError where lines have nothing to go over: columns that are no numbers."""
    if column_key is None:
        raise InputError("plot=lines: expected a column_key whose values are numbers, like data.length, found null")
    if names := [name for name in columns if number(name) is None]:
        raise InputError(f"plot=lines: expected columns that are numbers ({column_key}), found {names}")


def _names(key: str, given: Any) -> tuple[str, ...] | None:
    given = _plain(given)
    if given is None:
        return None
    listed = given if isinstance(given, (list, tuple)) else [given]
    if not listed or any(name is None or isinstance(name, (list, dict)) for name in listed):
        raise InputError(f"{key}: expected names, like [a,b], or null for all, found {given!r}")
    names = tuple(map(str, listed))
    if len(set(names)) < len(names):
        raise InputError(f"{key}: expected each name once, found {list(names)}")
    return names


def _constants(given: Any) -> Constants:
    given = _plain(given)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"constants: expected numbers by row, like {{teacher: 0.9}}, found {given!r}")
    found: dict[str, float | Mapping[str, float]] = {}
    for row, of in given.items():
        key = f"constants.{row}"
        if isinstance(of, Mapping) and of:
            found[str(row)] = {str(column): _number(f"{key}.{column}", value) for column, value in of.items()}
        else:
            found[str(row)] = _number(key, of)
    return found


def _number(key: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise InputError(f"{key}: expected a number, found {given!r}")
    return float(given)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
