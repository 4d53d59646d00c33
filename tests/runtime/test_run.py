from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from detkd.errors import InputError
from detkd.runtime import run


def config(**values: object) -> DictConfig:
    return OmegaConf.create({"out": "here", "seed": 0, "loss": {"tv": {"weight": 1.0}}, "trainer": {"devices": 1}, **values})


def test_config_dir_is_the_tree_that_has_the_entry_points() -> None:
    assert run.config_dir().is_absolute()
    assert {"invert.yaml", "distill.yaml", "loss", "teacher"} <= {p.name for p in run.config_dir().iterdir()}


def test_claim_writes_the_resolved_config(tmp_path: Path) -> None:
    run.claim(config(twice="${seed}"), tmp_path / "new")
    assert OmegaConf.load(tmp_path / "new" / "config.yaml") == config(twice=0)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["config.yaml"]


def test_the_same_run_again_is_welcome_wherever_and_on_whatever_it_runs(tmp_path: Path) -> None:
    run.claim(config(), tmp_path)
    (tmp_path / "results.json").write_text("{}")
    run.claim(config(), tmp_path)
    run.claim(config(out="there", trainer={"devices": 2}, logger={"a": 1}, callbacks={}), tmp_path)


def test_another_run_is_refused_naming_the_keys_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    run.claim(config(), tmp_path)
    run.write_results(tmp_path, {})
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=r"another run; keys that differ: \['extra', 'loss.tv.weight', 'seed'\]") as error:
        run.claim(config(seed=1, loss={"tv": {"weight": 2.0}}, extra=True), tmp_path)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_benchmark_takes_more_corruptions_and_no_other_seed(tmp_path: Path) -> None:
    run.claim(config(corruptions={"names": ["fog"], "severities": [1], "seed": 0}), tmp_path)
    run.write_results(tmp_path, {})
    run.claim(config(corruptions={"names": ["fog", "snow"], "severities": [1, 2], "seed": 0}), tmp_path)
    with pytest.raises(InputError, match=r"keys that differ: \['corruptions.seed'\]"):
        run.claim(config(corruptions={"names": ["fog"], "severities": [1], "seed": 1}), tmp_path)
    with pytest.raises(InputError, match=r"keys that differ: \['corruptions'\]"):
        run.claim(config(corruptions=None), tmp_path)


def test_a_job_of_a_sweep_with_other_corruptions_is_not_finished(tmp_path: Path, job: DictConfig) -> None:
    first = config(corruptions={"names": ["fog"], "seed": 0})
    run.claim(first, tmp_path)
    run.write_results(tmp_path, {"a": 1})
    assert (run.finished(first, tmp_path) or {})["a"] == 1
    assert run.finished(config(corruptions={"names": ["fog", "snow"], "seed": 0}), tmp_path) is None


def test_a_run_that_left_no_results_makes_way(tmp_path: Path) -> None:
    run.claim(config(), tmp_path)
    run.claim(config(seed=1), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml") == config(seed=1)


def test_a_folder_with_results_but_no_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="results of another run"):
        run.claim(config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"a: ${nowhere}"])
def test_a_damaged_config_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    run.write_results(tmp_path, {})
    with pytest.raises(InputError, match=r"config\.yaml|another run"):
        run.claim(config(), tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_differing_names_dotted_keys() -> None:
    assert run.differing({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 3}) == ["a.c", "d", "e"]
    assert run.differing({"a": [1, 2]}, {"a": [1, 3]}) == ["a"]
    assert run.differing({"a": {"b": 1}}, {"a": None}) == ["a"]
    assert run.differing({"a": 1}, {"a": 1}) == []


def test_write_text_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    run.write_text(path, "one")
    run.write_text(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_write_text_escapes_what_is_no_text(tmp_path: Path) -> None:
    run.write_text(tmp_path / "a.csv", f"1,{os.fsdecode(bytes([255]))}.jpg,\u00fc")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "1,\\udcff.jpg,\u00fc"


def test_write_text_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    run.write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        run.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_write_results_is_json(tmp_path: Path) -> None:
    run.write_results(tmp_path, {"ap50": 0.5, "verifier_ap50": None})
    text = (tmp_path / "results.json").read_text()
    found = json.loads(text)
    assert {"ap50": 0.5, "verifier_ap50": None}.items() <= found.items()
    assert found["command"] is None  # no entry point runs
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["versions"]) <= {"python", "detkd", "torch", "torchvision", "lightning"}
    assert text.endswith("}\n")


def test_fail_prints_one_message_and_leaves_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.fail(InputError("a.json: expected b, found c"))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: a.json: expected b, found c\n"


def test_device_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert run.device_of("auto") == expected
    assert run.device_of("cuda:1") == "cuda:1"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[DictConfig]:
    """Hydra's own config as it stands in job 1 of a sweep."""
    before = HydraConfig.instance().cfg
    with initialize_config_dir(str(run.config_dir()), version_base="1.3"):
        cfg = compose("invert", ["seed=1", "n_images=2"], return_hydra_config=True)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.mode = "MULTIRUN"
    cfg.hydra.runtime.output_dir = str(tmp_path / "1")
    cfg.hydra.job.num = 1
    cfg.hydra.overrides.task = ["seed=1", "n_images=2"]
    OmegaConf.set_readonly(cfg.hydra, True)
    HydraConfig.instance().set_config(cfg)
    yield cfg
    HydraConfig.instance().cfg = before
    GlobalHydra.instance().clear()


@pytest.mark.usefixtures("job")
def test_in_a_sweep_children_get_the_arguments_and_the_folder_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["invert.py", "-m", "seed=0,1", "n_images=2"])
    run.prepare_multirun()
    assert sys.argv == ["invert.py", "seed=1", "n_images=2"]
    assert HydraConfig.get().run.dir == str(tmp_path / "1")
    assert run.output_dir() == tmp_path / "1"


def test_children_look_for_configs_where_their_parent_does() -> None:
    arguments = ["-m", "--config-dir", "mine", "seed=0,1", "-cd", "other", "--config-dir=third", "n_images=2"]
    assert run.config_flags(arguments) == ["--config-dir", "mine", "-cd", "other", "--config-dir=third"]
    assert run.config_flags(["-m", "seed=0,1"]) == []


@pytest.mark.usefixtures("job")
def test_after_a_job_nothing_of_its_processes_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "0")
    run.finish_multirun()
    assert not set(names) & set(os.environ)


def test_a_single_run_keeps_its_arguments_and_environment(job: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    OmegaConf.set_readonly(job.hydra, False)
    job.hydra.mode = "RUN"
    HydraConfig.instance().set_config(job)
    monkeypatch.setattr(sys, "argv", ["invert.py", "seed=1"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    run.prepare_multirun()
    run.finish_multirun()
    assert sys.argv == ["invert.py", "seed=1"]
    assert os.environ["LOCAL_RANK"] == "1"


def of_the_disk(error: OSError) -> str:
    try:
        return str(run._of_the_disk(error))
    except OSError:
        return "raised again"


def test_files_of_the_user_are_named_and_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "a.json")
    assert of_the_disk(missing).startswith("a.json: expected a file or folder that can be read or written, found: No such file")
    moved = PermissionError(errno.EACCES, "Permission denied", "a.json.tmp", None, "a.json")
    assert of_the_disk(moved).startswith("a.json: expected")
    assert "the disk is full" in of_the_disk(OSError(errno.ENOSPC, "No space left on device"))
    url = OSError()
    url.filename = "https://example.org/a"  # as urllib's errors have it
    of_ours = FileNotFoundError(errno.ENOENT, "No such file or directory", str(Path(run.__file__).parent / "page.html"))
    for error in (url, of_ours, OSError("no name at all")):
        assert of_the_disk(error) == "raised again"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert of_the_disk(missing) == "raised again"
