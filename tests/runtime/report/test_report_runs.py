from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from detkd.errors import InputError
from detkd.runtime.report.runs import find_runs, kind_of, read_runs, resolved, select, short_names


def write_run(folder: Path, config: dict[str, Any], results: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    if results is not None:
        (folder / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
    return folder


def test_runs_are_found_below_a_folder_and_nothing_inside_of_a_run(tmp_path: Path) -> None:
    for name in ("b", "a/1", "a/0", "a/0/wandb/run/files", "c/shards", "c/.hidden"):
        write_run(tmp_path / name, {"seed": 0})
    found, problems = find_runs(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a/0", "a/1", "b"]
    assert problems == []
    assert find_runs(tmp_path / "b") == ([tmp_path / "b"], [])


def test_results_above_runs_sum_them_up_and_others_without_a_config_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "demo" / "student", {"seed": 0}, {"ap": 0.5})
    for name in ("demo", "lost"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "results.json").write_text("{}")
    found, problems = find_runs(tmp_path)
    assert found == [tmp_path / "demo" / "student"]
    assert problems == [f"{tmp_path / 'lost'}: expected a run, found results.json without config.yaml; it is left out"]


def test_the_kind_is_the_recorded_command_else_what_the_files_hold() -> None:
    assert kind_of({"student": {}}, {"command": "python -m detkd.compare out=x"}, None) == "compare"
    assert kind_of({"stages": []}, {}, {"recipe": {}}) == "invert"
    assert kind_of({"counts": {}}, {}, {"recipe": {}}) == "tile"
    assert kind_of({"teacher": {}, "student": {}, "data": {}}, {}, None) == "distill"
    assert kind_of({"teacher": {}, "students": {}, "data": {}}, {}, None) == "features"
    assert kind_of({"teacher": {}, "data": {}}, {"command": None}, None) == "evaluate"
    assert kind_of({}, {"command": "python -m detkd.<b>"}, None) == "run"


def test_names_are_as_short_as_they_can_be() -> None:
    root, other = Path("/x/runs"), Path("/y/runs")
    assert short_names({root: root}) == ["runs"]
    assert short_names({root / "a": root, root / "b" / "0": root}) == ["a", "b/0"]
    assert short_names({root / "a": root / "a", root / "b": root / "b"}) == ["a", "b"]
    assert short_names({root / "0": root, root / "1": root}) == ["runs/0", "runs/1"]
    assert short_names({root / "a": root, Path("/z"): Path("/z")}) == ["runs/a", "z"]
    assert short_names({root / "a": root / "a", other / "a": other / "a"}) == ["x/runs/a", "y/runs/a"]


def test_damaged_runs_are_named_and_the_others_read(tmp_path: Path) -> None:
    write_run(tmp_path / "good", {"seed": 0}, {"ap": 0.5})
    write_run(tmp_path / "unfinished", {"seed": 0})
    write_run(tmp_path / "json", {"seed": 0}, "{")
    write_run(tmp_path / "list", {"seed": 0}, "[1]")
    for name, content in (("yaml", b"a: [1"), ("binary", b"\xff\x00\x01"), ("plain", b"- 1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_bytes(content)
    write_run(tmp_path / "manifest", {"seed": 0})
    (tmp_path / "manifest" / "manifest.json").write_text('{"format": "detkd.store"}')
    (tmp_path / "empty folder").mkdir()
    write_run(tmp_path / "emptied", {"seed": 0}, {"ap": 0.5})
    (tmp_path / "emptied" / "config.yaml").write_bytes(b"")  # cut off by a full disk
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "results.json").write_text("{}")
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"a": [deep]}
    write_run(tmp_path / "deep", {"seed": 0}, deep)
    runs, problems = read_runs([tmp_path, tmp_path / "empty folder"])
    assert [run.name.split("/")[-1] for run in runs] == ["good", "unfinished"]
    assert (runs[0].results, runs[1].results) == ({"ap": 0.5}, None)
    assert len(problems) == 10
    for name in ("json", "list", "yaml", "binary", "plain", "manifest", "empty folder", "emptied", "lost", "deep"):
        assert any(name in problem for problem in problems), name


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "good", {"seed": 0})
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:  # the superuser may look into any folder
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    runs, problems = read_runs([tmp_path])
    assert [run.name for run in runs] == ["good"]
    (problem,) = problems
    assert "locked: expected a folder to look for runs in" in problem


def test_interpolations_that_do_not_resolve_are_no_damage(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"a": "${hydra:runtime.output_dir}", "b": "???"})
    assert read_runs([tmp_path])[0][0].config == {"a": "${hydra:runtime.output_dir}", "b": "???"}


@pytest.mark.parametrize("paths", [[], ["nowhere"], ["file"], ["empty"], ["broken"]])
def test_no_run_at_all_is_an_error(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "broken", {}, "{")
    with pytest.raises(InputError, match="runs: expected"):
        read_runs([tmp_path / path for path in paths])


def test_select_follows_dots() -> None:
    assert select({"a": {"b": 1}}, "a.b") == 1
    assert select({"a": 2}, "a.b") is None
    assert select(None, "a") is None


@pytest.mark.parametrize("path", ["a\0b", "a\udcff\ud800"])
def test_a_path_that_no_file_system_takes_is_none(path: str) -> None:
    assert resolved(path) is None
    assert resolved("a/../b") == Path("b").resolve()
