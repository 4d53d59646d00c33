from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from detkd.errors import InputError
from detkd.runtime import sweep_table
from detkd.runtime.sweep_table import WriteTable, finish_sweep
from detkd.runtime.table_settings import check_settings

LISTED: dict[str, Any] = {"rows": ["a", "b"], "columns": ["x"]}


def write(folder: Path, row: str, ap50: float | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"row: {row}\ncolumn: x\n")
    if ap50 is not None:
        (folder / "results.json").write_text(json.dumps({"ap50": ap50}))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(sweep_table, "at_end", found.append)
    return found


def hydra_config(folder: Path) -> Any:
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})


def test_the_table_of_a_sweep_is_written_when_it_ends(
    tmp_path: Path, registered: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "other" / "run", "b", 0.9)
    write(tmp_path / "sweep" / "0", "a", 0.5)
    WriteTable(**LISTED).on_multirun_start(hydra_config(tmp_path / "sweep"))
    assert not (tmp_path / "sweep/table.md").exists()
    registered[0](False)
    lines = (tmp_path / "sweep/table.md").read_text().splitlines()
    assert lines[2:4] == ["| a | 0.500 (1) |", "| b | – |"]  # a run elsewhere is none of this sweep
    assert "| a | 0.500 (1) |" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "sweep").glob("table.*")} == {"table.md", "table.csv", "table.json", "table.png"}


def test_sweeps_that_share_their_runs_have_tables_of_their_own(tmp_path: Path, registered: list[Any]) -> None:
    write(tmp_path / "students" / "a", "a", 0.5)
    write(tmp_path / "students" / "b", "b", 0.7)
    for row, name in (("a", "table3"), ("b", "table5")):
        WriteTable(rows=[row], column_key=None, out=str(tmp_path / name)).on_multirun_start(hydra_config(tmp_path / "students"))
    for end in registered:
        end(False)
    assert "| a | 0.500 (1) |" in (tmp_path / "table3/table.md").read_text()
    assert "| b | 0.700 (1) |" in (tmp_path / "table5/table.md").read_text()
    assert not (tmp_path / "students/table.md").exists()


def test_a_sweep_that_failed_shows_its_holes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = check_settings(**LISTED, plot="none")
    finish_sweep(settings, tmp_path, tmp_path, failed=True)
    assert list(tmp_path.iterdir()) == []  # no job began: there is nothing to show
    write(tmp_path / "0", "a")
    finish_sweep(settings, tmp_path, tmp_path, failed=True)
    assert (tmp_path / "table.md").read_text().splitlines()[2:4] == ["| a | – (1 unfinished) |", "| b | – |"]
    assert "The sweep ended with an error" in capsys.readouterr().out


def test_a_sweep_without_runs_is_all_holes_where_rows_are_listed(tmp_path: Path) -> None:
    finish_sweep(check_settings(**LISTED), tmp_path, tmp_path, failed=False)
    assert (tmp_path / "table.md").read_text().splitlines()[2:4] == ["| a | – |", "| b | – |"]
    with pytest.raises(InputError, match=r"no table of the runs in .*: expected runs with row and column in their configs"):
        finish_sweep(check_settings(), tmp_path, tmp_path, failed=False)


def test_the_first_of_several_processes_writes(tmp_path: Path, registered: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    WriteTable().on_multirun_start(hydra_config(tmp_path))
    assert registered == []


def test_settings_that_cannot_be_end_the_sweep_before_it_begins(
    tmp_path: Path, registered: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        WriteTable(digits=-1).on_multirun_start(hydra_config(tmp_path))
    assert "error: hydra.callbacks.table.digits: expected a whole number from 0 to 9, found -1" in capsys.readouterr().err
    assert registered == []
    WriteTable().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": "???"}}}))
    assert registered == []
