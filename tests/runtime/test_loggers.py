from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from detkd.errors import InputError
from detkd.inversion.pictures import log_picture
from detkd.runtime.loggers import build_loggers, tensorboard_logger


class Wandb(WandbLogger):
    """Weights & Biases without a run: remembers the pictures."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, tuple[int, ...], list[str]]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.pictures.append((key, images[0].shape, kwargs["caption"]))


class Board(TensorBoardLogger):
    """TensorBoard without its package: remembers the pictures."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, tuple[int, ...], int | None]] = []

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, tag: str, picture: Any, step: int | None) -> None:
        self.pictures.append((tag, picture.shape, step))


def node(target: str, **arguments: str) -> DictConfig:
    return OmegaConf.create({"_target_": target, **arguments})


def test_the_csv_is_always_written_beside_another_logger(tmp_path: Path) -> None:
    weights_and_biases = OmegaConf.create({"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True})
    first, second = build_loggers(weights_and_biases, tmp_path)
    assert isinstance(first, WandbLogger)
    assert isinstance(second, CSVLogger)
    second.log_metrics({"train/loss": 1.0}, 0)
    second.save()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,train/loss"


@pytest.mark.parametrize("error", [wandb.errors.UsageError("No API key configured."), ValueError("1 validation error\n  mode")])
def test_weights_and_biases_without_a_login_is_an_error(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", refuse)
    logger = node("lightning.pytorch.loggers.WandbLogger", save_dir=str(tmp_path))
    with pytest.raises(
        InputError, match=r"logger=wandb: expected a login .*logger\.offline=true.*says: (No API|1 validation error mode)"
    ):
        build_loggers(logger, tmp_path)
    logger.offline = True
    assert len(build_loggers(logger, tmp_path)) == 2


def test_csv_alone_is_one_logger_and_none_is_none(tmp_path: Path) -> None:
    (only,) = build_loggers(node("lightning.pytorch.loggers.CSVLogger", save_dir=str(tmp_path)), tmp_path)
    assert isinstance(only, CSVLogger)
    assert build_loggers(None, tmp_path) == []
    assert build_loggers(OmegaConf.create({}), tmp_path) == []


def test_tensorboard_without_its_package_is_an_error_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'detkd\[tensorboard\]'"):
        tensorboard_logger("anywhere")


def test_pictures_go_to_the_loggers_that_take_them(tmp_path: Path) -> None:
    online, board = Wandb(), Board()
    picture = torch.zeros(3, 4, 5, dtype=torch.uint8)
    log_picture([CSVLogger(str(tmp_path)), online, board], "images", picture, "batch0000", 7)
    assert online.pictures == [("images", (4, 5, 3), ["batch0000"])]
    assert board.pictures == [("images/batch0000", (3, 4, 5), 7)]
