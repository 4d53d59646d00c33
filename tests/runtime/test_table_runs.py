from __future__ import annotations

import json
from pathlib import Path

import pytest

from detkd.errors import InputError
from detkd.runtime.table_runs import flatten, look_up, read_runs


def write(folder: Path, results: str | None, config: str = "row: 1\n") -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    if results is not None:
        (folder / "results.json").write_text(results)


def test_configs_become_flat() -> None:
    assert flatten({"a": {"b": [1, 2], "c": None}}) == {"a": "b,c", "a.b": "1,2", "a.c": None}


def test_values_are_looked_up_by_dotted_keys() -> None:
    results = {"ap": 1, "per_class": {"RBC": 2, "a.b": 3}, "x.y": 4, "x": {"y": 5}, "p": {"q": 0}, "p.q": {"r": 6}}
    wanted = {"ap": 1, "per_class.RBC": 2, "per_class.a.b": 3, "x.y": 4, "p.q.r": 6}
    assert {key: look_up(results, key) for key in wanted} == wanted
    for key in ("ap50", "ap.x", "per_class.a", ""):
        with pytest.raises(KeyError):
            look_up(results, key)


def test_values_of_runs(tmp_path: Path) -> None:
    for name, results in {"a": '{"per_class": {"RBC": 0.5}}', "b": None, "c": '{"per_class": {"RBC": Infinity}}'}.items():
        write(tmp_path / name, results)
    found = [(run.finished, run.value) for run in read_runs(tmp_path, "per_class.RBC")]
    assert found == [(True, 0.5), (False, None), (True, None)]


def test_results_of_runs_that_are_in_no_table_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a", '{"ap50": 0.5}')
    write(tmp_path / "a" / "export", '{"files": []}', "format: onnx\n")
    assert [run.value for run in read_runs(tmp_path, "ap50", ["row"])] == [0.5, None]
    with pytest.raises(InputError, match=r"export.results.json: expected results with 'ap50', found no numbers"):
        read_runs(tmp_path, "ap50")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (
            json.dumps({"ap50": 0.5, "per_class": {"car": 0.5}, "id": "a"}),
            "expected results with 'ap', found ap50, per_class.car",
        ),
        ("{", "expected results with 'ap', found JSONDecodeError"),
        ("[]", "expected results with 'ap', found no numbers"),
        ('{"ap": "high"}', "expected a number as 'ap', found 'high'"),
        ('{"ap": true}', "expected a number as 'ap', found True"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, results: str, message: str) -> None:
    write(tmp_path / "run", results)
    with pytest.raises(InputError, match=f"run.results.json: {message}"):
        read_runs(tmp_path, "ap")


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected runs \(folders with a config.yaml\), found none"):
        read_runs(tmp_path, "ap")
    assert read_runs(tmp_path, "ap", none_ok=True) == []
    write(tmp_path / "run", None, "a: [\n")
    with pytest.raises(InputError, match=r"run.config.yaml: expected the config of a run, found"):
        read_runs(tmp_path, "ap")
