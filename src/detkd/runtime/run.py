"""Run an entry point: the folder it owns, its record, and its errors."""

from __future__ import annotations

import errno
import io
import itertools
import json
import logging
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue

import detkd
from detkd.disk import replace_file
from detkd.errors import InputError
from detkd.runtime.ending import endings

CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Not what makes a run another run: where it writes, and on what it runs.
ELSEWHERE = ("out", "trainer", "logger", "callbacks")
# Of corruptions: which of them are scored; each has a file of its own, so a folder takes more of them later.
_EXTENT = ("names", "severities")
# Of the trainer: where and how loudly it runs.
_PLACE = ("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "enable_progress_bar", "enable_model_summary")


def config_dir() -> Path:
    """The absolute path of conf/: in the wheel it lies in the package, in a clone at the top."""
    package = Path(detkd.__file__).resolve().parent
    inside, beside = package / "conf", package.parents[1] / "conf"
    return inside if inside.is_dir() else beside


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorate a task: compose its config, run it, and print a user's mistake as one message, without a traceback."""

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def run(cfg: DictConfig) -> Any:
            logging.captureWarnings(True)
            quiet()
            print_any_name()
            try:
                prepare_multirun()
                return task(cfg)
            except (InputError, MisconfigurationException) as error:
                fail(error)
            except MissingMandatoryValue as error:
                fail(
                    InputError(
                        f"{error.full_key or error.key}: expected a value on the command line, like {error.full_key or error.key}=..."
                    )
                )
            except OSError as error:
                fail(_of_the_disk(error))
            except InstantiationException as error:
                cause = error.__cause__
                if isinstance(cause, OSError):
                    fail(_of_the_disk(cause))
                if not isinstance(cause, (InputError, TypeError, ValueError)):
                    raise
                fail(cause if isinstance(cause, InputError) else error)
            finally:
                finish_loggers()
                finish_multirun()

        run.__module__, run.__name__ = task.__module__, config_name
        command = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run)

        def main() -> None:
            try:
                with endings():
                    command()
            except InputError as error:
                fail(error)
            except OSError as error:
                fail(_of_the_disk(error))

        return main

    return decorate


def debugging() -> bool:
    """Whether tracebacks are asked for, by Hydra's own switch."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _of_the_disk(error: OSError) -> InputError:
    """The message for a disk that is full, or a file of the user's that cannot be read or written; raises all else, and all when debugging."""
    if error.errno in NO_SPACE:
        return InputError(f"the disk is full ({error}); what is written is whole: make room, and the same command goes on")
    name = error.filename2 or error.filename  # of two, as in a move, the one that stays
    ours = isinstance(name, str | bytes) and Path(os.fsdecode(name)).is_relative_to(Path(detkd.__file__).parent)
    if not isinstance(name, str | bytes) or error.errno is None or ours or debugging():
        raise error
    return InputError(
        f"{os.fsdecode(name)}: expected a file or folder that can be read or written, found: {error.strerror} "
        "(HYDRA_FULL_ERROR=1 shows where)"
    )


def finish_loggers() -> None:
    """Close what a logger left open, so that the next job of a sweep starts a run of its own."""
    if (wandb := sys.modules.get("wandb")) is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()


def fail(error: Exception) -> None:
    """Print the error and leave with status 2."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def quiet() -> None:
    """Silence advice that is not about this run, and let matrices multiply in TF32 where a GPU can (Lightning asks for a choice)."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip" not in r.getMessage())
    for text in (".*isinstance.treespec.*", ".*in eval mode at the start of training.*", ".*no optimizer.*", ".*num_workers.*"):
        warnings.filterwarnings("ignore", message=text)
    for text in (".*Total length of `list` across ranks is zero.*", ".*Experiment logs directory.*", ".*no `val_dataloader`.*"):
        warnings.filterwarnings("ignore", message=text)
    torch.set_float32_matmul_precision("high")


def print_any_name() -> None:
    """Let the terminal show names of files that are not UTF-8, or that it has no letters for, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output_dir() -> Path:
    """The folder of this run (in a multirun, of this job), absolute."""
    return Path(HydraConfig.get().runtime.output_dir).resolve()


def check_shared_folder() -> None:
    """Raise InputError where something else than Lightning starts the processes and each would make a dated folder of its own."""
    started = next((n for n in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID") if n in os.environ), None)
    several = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1
    given = [o for o in HydraConfig.get().overrides.task if o.startswith("out=")]
    if started and several and not given:
        raise InputError(
            "out: expected a folder that all processes share, like out=DIR, where torchrun or SLURM starts several"
        )


def claim(cfg: DictConfig, folder: Path) -> None:
    """Make ``folder`` this run's and write its resolved config there.

    The same run again is welcome, and so is any where one left no results. Raises InputError, naming the keys that differ, when
    the folder holds another run's.
    """
    check_claim(cfg, folder)
    record(cfg, folder)


def check_claim(cfg: DictConfig, folder: Path) -> None:
    """Raise as :func:`claim` does, and write nothing."""
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    path = folder / CONFIG_FILE
    mine = _without_extent(identity(resolved))
    if path.is_file() and (folder / RESULTS_FILE).exists():
        try:
            there = _without_extent(identity(OmegaConf.to_container(OmegaConf.load(path))))
        except Exception as error:
            raise InputError(f"{path}: expected the config of a run, found {type(error).__name__}: {error}") from None
        if keys := differing(there, mine):
            raise InputError(f"{folder}: expected an empty folder or this run's, found another run; keys that differ: {keys}")
    elif (folder / RESULTS_FILE).exists() or (folder / "manifest.json").exists():
        raise InputError(f"{folder}: expected an empty folder, found the results of another run")


def finished(cfg: DictConfig, folder: Path, facts: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The results of this job of a sweep where its folder has them already, so that a sweep goes on where it was cut off; says so.

    facts: what the results must say, like hashes of files that were read. None outside of sweeps: a single command that is typed again
    runs again.
    """
    paths = folder / CONFIG_FILE, folder / RESULTS_FILE
    if HydraConfig.get().mode != RunMode.MULTIRUN or not all(path.is_file() for path in paths):
        return None
    try:
        there = OmegaConf.to_container(OmegaConf.load(paths[0]))
        results = dict(json.loads(paths[1].read_text(encoding="utf-8")))
    except Exception:  # whatever a damaged file raises: the job is run again, or claim() says what is wrong
        return None
    here = OmegaConf.to_container(cfg, resolve=True)
    same = not differing(identity(there), identity(here)) and not differing(_training(there), _training(here))
    if not same or any(results.get(key) != value for key, value in (facts or {}).items()):
        return None
    print(f"{folder}: has its results already", flush=True)
    return results


def record(cfg: DictConfig, folder: Path) -> None:
    """Write the resolved config into the run's folder; the first process does."""
    if getattr(rank_zero_only, "rank", 0):
        return
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(cfg, resolve=True))


def keep_log(folder: Path) -> None:
    """Give the log of the run before another name, which the logger would overwrite: metrics.1.csv, ..."""
    if getattr(rank_zero_only, "rank", 0) or not (folder / "metrics.csv").is_file():
        return
    number = next(n for n in itertools.count(1) if not (folder / f"metrics.{n}.csv").exists())
    (folder / "metrics.csv").rename(folder / f"metrics.{number}.csv")


def identity(config: Any) -> dict[str, Any]:
    """The part of a resolved config that says which run it is, as plain json values."""
    kept = {k: v for k, v in config.items() if k not in ELSEWHERE} if isinstance(config, dict) else {}
    return json.loads(json.dumps(kept, default=str))


def _without_extent(config: dict[str, Any]) -> dict[str, Any]:
    """An identity in which two benchmarks are the same run where one has more corruptions."""
    of = config.get("corruptions")
    return config | {"corruptions": {k: v for k, v in of.items() if k not in _EXTENT}} if isinstance(of, dict) else config


def _training(config: Any) -> Any:
    """What the trainer says of the training itself (limits, precision), without where it runs."""
    trainer = config.get("trainer") or {} if isinstance(config, dict) else {}
    return json.loads(json.dumps({k: v for k, v in trainer.items() if k not in _PLACE}, default=str))


def differing(there: Any, here: Any, key: str = "") -> list[str]:
    """The dotted keys at which two configs differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(set(there) | set(here))
        return [d for k in keys for d in differing(there.get(k), here.get(k), f"{key}.{k}" if key else str(k))]
    return [] if there == here else [key]


def device_of(name: str) -> str:
    """A device by name; "auto" is CUDA where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, and in it what was typed and which versions made it."""
    write_json(folder / RESULTS_FILE, {**results, "command": command_line(), "versions": versions()})


def command_line() -> str | None:
    """The command of this run (in a sweep, of this job) as it would be typed; None where no entry point runs."""
    if not HydraConfig.initialized():
        return None
    job = f"detkd.{HydraConfig.get().job.config_name}"
    return shlex.join(["python", "-m", job, *config_flags(sys.argv[1:]), *task_overrides()])


def versions() -> dict[str, str]:
    """Of Python and the packages that decide what a run computes."""
    packages = {name: metadata.version(name) for name in ("detkd", "torchvision", "lightning") if _installed(name)}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **packages}  # torch's own names its CUDA


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:  # run from a clone by PYTHONPATH
        return False


def write_json(path: Path, value: Any) -> None:
    """Write a json file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; parts of file names that are no text are written as escapes."""
    replace_file(path, text.encode("utf-8", "backslashreplace"))


def prepare_multirun() -> None:
    """Make Lightning's children run this job of a sweep, not the sweep.

    Lightning starts DDP children with this process's arguments; in a sweep they must be the job's, and its folder.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    folder = str(output_dir())
    config = cast(Any, HydraConfig.instance().cfg)
    OmegaConf.set_readonly(config.hydra, False)  # Hydra sets the flag on this node
    with open_dict(config):
        config.hydra.run.dir = folder
    sys.argv[1:] = [*config_flags(sys.argv[1:]), *task_overrides()]


def config_flags(arguments: Sequence[str]) -> list[str]:
    """The flags that say where to look for configs, which a child needs too."""
    flags: list[str] = []
    for flag, value in itertools.pairwise([*arguments, ""]):
        if flag.startswith("--config-dir="):
            flags.append(flag)
        elif flag in ("--config-dir", "-cd"):
            flags += [flag, value]
    return flags


def task_overrides() -> Sequence[str]:
    """The overrides of this job."""
    return list(HydraConfig.get().overrides.task)


def finish_multirun() -> None:
    """Leave nothing of this job's process group for the next job of a sweep."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
