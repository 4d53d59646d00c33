from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from detkd.errors import InputError
from detkd.runtime.run import config_dir
from detkd.runtime.table_settings import check_settings


def test_settings_as_a_config_has_them() -> None:
    cfg = OmegaConf.create({"rows": ["a", 1], "columns": 0.5, "constants": {"t": {64: 1, "b": 0.5}, "u": 2}})
    made = check_settings(rows=cfg.rows, columns=cfg.columns, constants=cfg.constants, relative_to=1)
    assert (made.rows, made.columns, made.relative_to) == (("a", "1"), ("0.5",), "1")
    assert made.constants == {"t": {"64": 1.0, "b": 0.5}, "u": 2.0}


def test_the_defaults_are_those_of_the_command() -> None:
    given = OmegaConf.load(config_dir() / "table.yaml")
    assert isinstance(given, type(OmegaConf.create({})))
    keys = set(given) - {"defaults", "hydra", "runs", "out"}
    assert check_settings(**{str(key): given[key] for key in keys}) == check_settings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"row_key": None}, "row_key: expected a dotted key, found None"),
        ({"value": 3}, "value: expected a dotted key, found 3"),
        ({"column_key": ""}, "column_key: expected a dotted key, found ''"),
        ({"digits": True}, "digits: expected a whole number from 0 to 9, found True"),
        ({"plot": "pie"}, r"plot: expected one of \['dots', 'lines', 'none'\], found 'pie'"),
        ({"rows": []}, r"rows: expected names, like \[a,b\], or null for all, found \[\]"),
        ({"rows": {"a": 1}}, "rows: expected names"),
        ({"columns": ["a", "a"]}, r"columns: expected each name once, found \['a', 'a'\]"),
        ({"column_key": None, "columns": ["a"]}, r"columns: expected null where column_key is null, found \['a'\]"),
        ({"constants": 0.9}, r"constants: expected numbers by row, like \{teacher: 0.9\}, found 0.9"),
        ({"constants": {"t": "high"}}, "constants.t: expected a number, found 'high'"),
        ({"constants": {"t": {"a": True}}}, "constants.t.a: expected a number, found True"),
        ({"constants": {"t": float("nan")}}, "constants.t: expected a number, found nan"),
        ({"constants": {"t": {}}}, r"constants.t: expected a number, found \{\}"),
        ({"plot": "lines", "column_key": None}, "plot=lines: expected a column_key whose values are numbers"),
        (
            {"plot": "lines", "columns": [64, "all"]},
            r"plot=lines: expected columns that are numbers \(column\), found \['all'\]",
        ),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings(**given)
