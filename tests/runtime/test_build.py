from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from detkd.detectors.darknet.detector import DarknetDetector
from detkd.errors import InputError
from detkd.losses.bn_stats import BatchNormStatistics
from detkd.losses.tv import TotalVariation
from detkd.runtime import build
from detkd.runtime.strategy import IndependentDDP

TV = {"_target_": "detkd.losses.tv.TotalVariation", "weight": 2.0, "of": "clean"}
BN = {"_target_": "detkd.losses.bn_stats.BatchNormStatistics", "form": "l2"}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.03, "betas": [0.9, 0.99]}
FIRST = {"resolution": 96, "iterations": 300, "optimizer": ADAM, "final_lr": 0.25, "weights": {"tv": 0.5}}
SECOND = {"resolution": [64, 32], "iterations": 10, "optimizer": ADAM}


def node(value: Any) -> DictConfig:
    return OmegaConf.create(value)


def stages(*nodes: Any, resolution: Any = None, iterations: int | None = None) -> DictConfig:
    return node({"stages": list(nodes), "resolution": resolution, "iterations": iterations})


def test_loss_terms_with_their_weights() -> None:
    loss = build.build_loss(node({"tv": TV, "bn_stats": BN}))
    assert isinstance(loss.terms["tv"], TotalVariation)
    assert isinstance(loss.terms["bn_stats"], BatchNormStatistics)
    assert loss.weights == {"tv": 2.0, "bn_stats": 1.0}
    assert loss.terms["bn_stats"].form == "l2"


def test_a_term_of_weight_0_or_null_is_not_even_built() -> None:
    bomb = {"_target_": "no.such.Class", "weight": 0}
    loss = build.build_loss(node({"tv": TV, "bomb": bomb, "gone": None}))
    assert list(loss.terms) == ["tv"]


def test_settings_of_a_term_that_is_not_selected_are_passed_over_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    loss = build.build_loss(node({"tv": TV, "bn_stats": {"weight": 5.0}}))
    assert list(loss.terms) == ["tv"]
    assert "loss.bn_stats has settings, but bn_stats is not in loss=[...]" in capsys.readouterr().err


@pytest.mark.parametrize("terms", [{}, {"tv": TV | {"weight": 0.0}}])
def test_no_term_is_an_error(terms: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"loss: expected at least one term of non-zero weight"):
        build.build_loss(node(terms))


def test_a_schedule_stands_beside_its_weight() -> None:
    loss = build.build_loss(
        node({"tv": TV | {"schedule": {"warmup_steps": 1, "start": 0.5}}, "bn_stats": BN | {"schedule": None}})
    )
    assert loss.weights == {"tv": 2.0, "bn_stats": 1.0}
    assert loss.weights_at(0, 10) == {"tv": 1.5}


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"warmup": 1}, r"loss\.tv\.schedule: expected some of the keys \['warmup_steps', .*, found \['warmup'\]"),
        ({"warmup_steps": -1}, r"loss\.tv\.schedule\.warmup_steps: expected a number of steps >= 0, found -1"),
        ("cosine", r"loss\.tv\.schedule: expected some of the keys .*, found 'cosine'"),
        ({}, r"loss\.tv\.schedule: expected warmup_steps > 0 or a decay"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_named(schedule: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build.build_loss(node({"tv": TV | {"schedule": schedule}}))


def test_an_inversion_has_weights_by_stage_and_no_schedules(tiny_detector: Any) -> None:
    with pytest.raises(InputError, match=r"loss\.tv\.schedule: expected none in an inversion.*stages\.0\.weights\.tv"):
        build.build_inversion_loss(node({"tv": TV | {"schedule": {"warmup_steps": 1}}}), tiny_detector())


def test_lists_keep_their_order_and_lose_nulls() -> None:
    nodes = {
        "b": {"_target_": "detkd.inversion.augment.Flip", "p": 1.0},
        "gone": None,
        "a": {"_target_": "detkd.inversion.augment.Jitter"},
    }
    assert [type(item).__name__ for item in build.build_list(node(nodes))] == ["Flip", "Jitter"]
    assert build.build_list(node({})) == []
    assert build.build_list(None) == []


def test_stages_as_they_are_written() -> None:
    first, second = build.build_stages(stages(FIRST, None, SECOND))
    assert (first.resolution, first.iterations, first.final_lr, dict(first.weights)) == ((96, 96), 300, 0.25, {"tv": 0.5})
    assert (second.resolution, second.iterations, second.final_lr, dict(second.weights)) == ((64, 32), 10, 0.0, {})
    optimizer = first.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 0.03
    assert tuple(optimizer.defaults["betas"]) == (0.9, 0.99)


@pytest.mark.parametrize(
    ("options", "resolution", "iterations"),
    [
        ({"resolution": 160}, (160, 160), 300),
        ({"resolution": [64, 32]}, (64, 32), 300),
        ({"iterations": 7}, (96, 96), 7),
        ({"resolution": 32, "iterations": 1}, (32, 32), 1),
    ],
)
def test_resolution_and_iterations_replace_the_list_by_its_first_stage(
    options: dict[str, Any], resolution: tuple[int, int], iterations: int
) -> None:
    (stage,) = build.build_stages(stages(FIRST, SECOND, **options))
    assert (stage.resolution, stage.iterations, dict(stage.weights)) == (resolution, iterations, {"tv": 0.5})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (stages(), "stages: expected at least one stage"),
        (stages(None), "stages: expected at least one stage"),
        (stages(FIRST | {"lr": 1.0}), r"stages: expected the keys .* found \['lr'\]"),
        (stages(FIRST | {"resolution": [1, 2, 3]}), r"stages\.resolution.*found \[1, 2, 3\]"),
        (stages(FIRST, iterations=0), r"stages\.iterations: expected at least 1, got 0"),
    ],
)
def test_bad_stages_are_errors(cfg: DictConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build.build_stages(cfg)


def test_detectors_and_their_class_names() -> None:
    tiny = {
        "_target_": "detkd.detectors.darknet.detector.yolov3_tiny",
        "image_size": [32, 32],
        "width": 0.125,
        "classes": None,
    }
    student = build.build_detector(node(tiny), "student", classes=("a", "b"))
    assert isinstance(student, DarknetDetector)
    assert student.spec.classes == ("a", "b")
    own = build.build_detector(node(tiny | {"classes": ["x"]}), "student", classes=("a", "b"))
    assert own is not None
    assert own.spec.classes == ("x",)


def test_no_detector_is_none_until_one_is_required() -> None:
    assert build.build_detector(None, "verifier") is None
    assert build.build_detector(node({}), "verifier") is None
    with pytest.raises(InputError, match=r"teacher: expected a detector, like teacher=scenes, found none"):
        build.required(None, "teacher")


def test_a_node_that_is_no_detector_and_one_without_a_mandatory_value_are_named() -> None:
    with pytest.raises(InputError, match=r"teacher: expected a detector, found \{'path': 'x'\}"):
        build.build_detector(node({"path": "x"}), "teacher")
    checkpoint = {"_target_": "detkd.detectors.checkpoint.load_checkpoint", "path": "???"}
    with pytest.raises(InputError, match=r"teacher\.path: expected a value on the command line, like teacher\.path=FILE"):
        build.build_detector(node({"teacher": checkpoint}).teacher, "teacher")


@pytest.mark.parametrize(
    ("devices", "nodes", "several"),
    [(1, 1, False), (2, 1, True), (1, 2, True), ("1", 1, False), ("2", 1, True), ("0,1", 1, True), ("0,", 1, False), ([3], 1, False), ([0, 1], 1, True)],
)  # fmt: skip
def test_how_many_processes_lightning_will_start(devices: Any, nodes: int, several: bool) -> None:
    assert build.several_processes(devices, nodes) is several


@pytest.mark.parametrize(("count", "several"), [(0, False), (1, False), (4, True)])
@pytest.mark.parametrize("devices", ["auto", -1, "-1"])
def test_all_devices_is_as_many_as_there_are(devices: Any, count: int, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert build.several_processes(devices, 1) is several


def trainer(**options: Any) -> DictConfig:
    settings = {
        "_target_": "lightning.Trainer",
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return node({"trainer": settings | options, "logger": None, "callbacks": {}})


def test_processes_of_an_inversion_are_independent_and_those_of_a_distillation_are_not(tmp_path: Path) -> None:
    kind = type(build.build_trainer(trainer(devices=2), [], tmp_path, independent=True).strategy)
    assert kind is IndependentDDP
    assert type(build.build_trainer(trainer(devices=2), [], tmp_path).strategy).__name__ == "DDPStrategy"
    assert not isinstance(build.build_trainer(trainer(), [], tmp_path, independent=True).strategy, IndependentDDP)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"strategy": "ddp"}, "strategy: expected auto"),
        ({"max_steps": 3}, "max_steps"),
        ({"precision": "bf16-true"}, "precision"),
    ],
)
def test_settings_that_do_not_go_with_an_inversion_are_errors(setting: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"trainer\.{message}"):
        build.build_trainer(trainer(**setting), [], tmp_path, independent=True)


def test_trainer_has_the_loggers_and_callbacks_of_the_config(tmp_path: Path) -> None:
    bare = build.build_trainer(trainer(), [], tmp_path, max_epochs=1)
    assert bare.loggers == []
    assert bare.default_root_dir == str(tmp_path)
    assert bare.max_epochs == 1
    cfg = trainer()
    cfg.logger = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path), "name": "", "version": ""}
    cfg.callbacks = {
        "pictures": {"_target_": "detkd.inversion.pictures.PictureCallback", "folder": str(tmp_path), "every": 7},
        "gone": None,
    }
    full = build.build_trainer(cfg, [], tmp_path)
    assert [type(logger) for logger in full.loggers] == [CSVLogger]
    assert [c.every for c in full.callbacks if hasattr(c, "every")] == [7]


def test_the_bar_of_the_callbacks_is_the_only_one(tmp_path: Path) -> None:
    assert build.build_trainer(trainer(), [], tmp_path).progress_bar_callback is None
    cfg = trainer()
    cfg.callbacks = {"bar": {"_target_": "lightning.pytorch.callbacks.RichProgressBar", "refresh_rate": 7}}
    assert type(build.build_trainer(cfg, [], tmp_path).progress_bar_callback).__name__ == "RichProgressBar"
    assert build.build_trainer(trainer(enable_progress_bar=True), [], tmp_path).progress_bar_callback is not None


def test_independent_processes_get_no_sampler_of_lightning(tmp_path: Path) -> None:
    def uses_sampler(**options: Any) -> bool:
        made = build.build_trainer(trainer(devices=2), [], tmp_path, **options)
        return made._accelerator_connector.use_distributed_sampler

    assert not uses_sampler(independent=True)
    assert uses_sampler()
