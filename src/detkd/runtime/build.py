"""From a composed config to objects. Only this package and the entry points see a DictConfig."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf

from detkd.data import augment as training_augment
from detkd.detectors.protocol import Detector
from detkd.distillation.module import DistillationModule
from detkd.errors import InputError
from detkd.inversion import augment as inversion_augment
from detkd.inversion.module import InversionModule
from detkd.inversion.quality import Judge
from detkd.inversion.stage import Stage
from detkd.losses.composite import Composite
from detkd.losses.weight_schedule import WeightSchedule
from detkd.runtime.loggers import build_loggers
from detkd.runtime.strategy import IndependentDDP


def build_detector(node: DictConfig | None, key: str, classes: Sequence[str] | None = None) -> Detector | None:
    """The detector of a teacher, student or verifier node; None for an empty one.

    classes: for a detector that names none of its own.
    """
    if not node:
        return None
    if "_target_" not in node:
        raise InputError(f"{key}: expected a detector, found {OmegaConf.to_container(node)}")
    extra = {"classes": tuple(classes)} if classes is not None and "classes" in node and node.classes is None else {}
    if missing := sorted(str(k) for k in OmegaConf.missing_keys(node)):
        raise InputError(f"{missing[0]}: expected a value on the command line, like {missing[0]}=FILE")
    return cast(Detector, instantiate(node, **extra))


def required(detector: Detector | None, key: str) -> Detector:
    """The detector, or an InputError that asks for one."""
    if detector is None:
        raise InputError(f"{key}: expected a detector, like {key}=scenes, found none")
    return detector


def build_loss(node: DictConfig) -> Composite:
    """The weighted sum of the terms under ``loss``; those of weight 0 are not even built.

    Settings of a term that is not selected (an experiment's, under another loss=[...]) are passed over, which is said.
    """
    terms: dict[str, Any] = {}
    weights: dict[str, float] = {}
    schedules: dict[str, WeightSchedule] = {}
    for name, term in node.items():
        if term is None:
            continue
        if "_target_" not in term:
            print(
                f"note: loss.{name!s} has settings, but {name!s} is not in loss=[...]; they are not used",
                file=sys.stderr,
                flush=True,
            )
            continue
        settings = {k: v for k, v in term.items() if k not in ("weight", "schedule")}
        weight = float(term.get("weight", 1.0))
        if weight != 0:
            terms[str(name)] = instantiate(OmegaConf.create(settings))
            weights[str(name)] = weight
            if term.get("schedule") is not None:
                schedules[str(name)] = _build_schedule(term.schedule, f"loss.{name!s}")
    if not terms:
        raise InputError("loss: expected at least one term of non-zero weight, like loss=[detection,bn_stats,tv], found none")
    return Composite(terms, weights, schedules)


def _build_schedule(node: Any, key: str) -> WeightSchedule:
    known = [f.name for f in fields(WeightSchedule)]
    if not isinstance(node, DictConfig):
        raise InputError(f"{key}.schedule: expected some of the keys {known}, found {node!r}")
    if unknown := sorted(set(map(str, node)) - set(known)):
        raise InputError(f"{key}.schedule: expected some of the keys {known}, found {unknown}")
    try:
        return WeightSchedule(**cast(dict[str, Any], OmegaConf.to_container(node, resolve=True)))
    except InputError as error:
        raise InputError(f"{key}.{error}") from None


def build_inversion_loss(node: DictConfig, teacher: Detector) -> Composite:
    """The loss of an inversion, without bn_stats where the teacher has no statistics to compare with; says so.

    Raises InputError for a term with a schedule.
    """
    if scheduled := [str(k) for k, v in node.items() if isinstance(v, DictConfig) and v.get("schedule") is not None]:
        raise InputError(
            f"loss.{scheduled[0]}.schedule: expected none in an inversion, whose stages have weights of their own "
            f"(stages.0.weights.{scheduled[0]}=...), found one"
        )
    if node.get("bn_stats") is not None and not teacher.norms():
        print(
            f"note: {type(teacher).__name__} stores no statistics (it has no BatchNorm layers): loss term bn_stats is left out; "
            "loss=[detection,tv,small_copy] has a prior in its place",
            file=sys.stderr,
            flush=True,
        )
        node = OmegaConf.create({str(k): v for k, v in node.items() if k != "bn_stats"})
    return build_loss(node)


def build_part(node: DictConfig | None) -> Any:
    """What an optional group names; None for an empty one."""
    return instantiate(node, _convert_="all") if node else None


def build_list(node: DictConfig | None) -> list[Any]:
    """The instances of a group of named nodes, in order; those set to null are left out."""
    return [] if not node else [instantiate(item) for item in node.values() if item is not None]


def build_inversion(cfg: DictConfig, teacher: Detector, verifier: Detector | None) -> InversionModule:
    """The module that optimises images against ``teacher``, with all parts that the config names; ``verifier`` only judges."""
    return InversionModule(
        teacher,
        instantiate(cfg.image),
        build_inversion_loss(cfg.loss, teacher),
        instantiate(cfg.layout, _convert_="all"),
        inversion_augment.Compose(build_list(cfg.augmentation)),
        build_stages(cfg),
        n_images=cfg.n_images,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        sampling=build_part(cfg.sampling),
        warm_start=build_part(cfg.warm_start),
        judge=Judge(teacher, verifier),
        accept=instantiate(cfg.accept),
        look_every=cfg.look_every,
        check_every=cfg.log_every,
        fold=cfg.fold,
        channels_last=cfg.channels_last,
        compile=cfg.compile,
    )


def build_stages(cfg: DictConfig) -> list[Stage]:
    """The stages; ``resolution=`` or ``iterations=`` replace them by the first one with these values."""
    stages = [stage for stage in cfg.stages if stage is not None]
    if not stages:
        raise InputError("stages: expected at least one stage, found none")
    if cfg.resolution is not None or cfg.iterations is not None:
        stages = stages[:1]
    return [_build_stage(stage, cfg.resolution, cfg.iterations) for stage in stages]


def _build_stage(node: DictConfig, resolution: Any, iterations: int | None) -> Stage:
    known = {"resolution", "iterations", "optimizer", "final_lr", "weights"}
    if unknown := sorted(set(map(str, node)) - known):
        raise InputError(f"stages: expected the keys {sorted(known)}, found {unknown}")
    if lacking := sorted({"resolution", "iterations", "optimizer"} - set(map(str, node))):
        raise InputError(f"stages: expected the keys {lacking} in every stage, found {sorted(map(str, node))}")
    side = node.resolution if resolution is None else resolution
    size = (side, side) if isinstance(side, int) else tuple(side)
    if len(size) != 2:
        raise InputError(f"stages.resolution: expected a side or [height, width], found {list(size)}")
    optimizer = instantiate(node.optimizer, _partial_=True, _convert_="all")
    weights = cast(Mapping[str, float], OmegaConf.to_container(node.get("weights") or OmegaConf.create({})))
    count = node.iterations if iterations is None else iterations
    return Stage((int(size[0]), int(size[1])), int(count), optimizer, weights, float(node.get("final_lr", 0.0)))


def build_distillation(cfg: DictConfig, student: Detector, teacher: Detector | None) -> DistillationModule:
    """The module that trains ``student``, with the loss, optimiser and augmentations of the config."""
    return DistillationModule(
        student,
        teacher,
        build_loss(cfg.loss),
        instantiate(cfg.optimizer),
        training_augment.Compose(build_list(cfg.augmentation)),
        labels=cfg.labels,
        label_threshold=cfg.label_threshold,
        ema_decay=cfg.ema_decay,
        ema_warmup=cfg.ema_warmup,
        warmup_steps=cfg.warmup_steps,
        final_lr_fraction=cfg.final_lr,
        seed=cfg.seed,
        channels_last=cfg.channels_last,
    )


def build_trainer(
    cfg: DictConfig,
    callbacks: Iterable[lightning.Callback],
    folder: Path,
    independent: bool = False,
    partial: bool = False,
    **settings: Any,
) -> lightning.Trainer:
    """Lightning's Trainer.

    independent: several processes work side by side and share nothing (inversion); else ``strategy: auto`` means DDP.
    partial: the loss may leave parameters without a gradient, which plain DDP takes for a mistake.
    """
    node = cfg.trainer
    strategy = node.strategy
    if independent:
        check_independent(node)
    if independent and strategy == "auto" and several_processes(node.devices, node.num_nodes):
        strategy = IndependentDDP()
        # the module gives each process its batches; Lightning would split each share once more
        settings["use_distributed_sampler"] = False
    if partial and strategy == "auto" and several_processes(node.devices, node.num_nodes):
        strategy = "ddp_find_unused_parameters_true"
    loggers = build_loggers(cfg.get("logger"), folder)
    watchers = [*build_list(cfg.get("callbacks")), *callbacks]
    if "enable_progress_bar" not in node:
        # Lightning puts a bar where there is none
        settings["enable_progress_bar"] = any(isinstance(watcher, ProgressBar) for watcher in watchers)
    return instantiate(
        node,
        strategy=strategy,
        callbacks=watchers,
        logger=loggers or False,
        default_root_dir=str(folder),
        **settings,
    )


def check_independent(node: DictConfig) -> None:
    """Raise InputError for settings of the trainer that do not go with an inversion."""
    if node.get("max_steps", -1) not in (-1, None):
        raise InputError(
            "trainer.max_steps: an inversion has no steps of Lightning's; set n_images, iterations or trainer.max_time"
        )
    if node.strategy != "auto":
        raise InputError(
            f"trainer.strategy: expected auto, since processes of an inversion share nothing, found {node.strategy!r}"
        )
    if str(node.get("precision", "32-true")) not in ("32", "32-true", "bf16-mixed", "16-mixed"):
        raise InputError(f"trainer.precision: expected 32-true, bf16-mixed or 16-mixed, found {node.precision!r}")


def several_processes(devices: Any, num_nodes: int) -> bool:
    """Whether Lightning will start more than one process for these settings."""
    if num_nodes > 1:
        return True
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() > 1
    if isinstance(devices, int):
        return devices > 1
    items = devices.split(",") if isinstance(devices, str) else list(devices)
    if isinstance(devices, str) and len(items) == 1:
        return int(devices) > 1
    return len([i for i in items if str(i).strip()]) > 1
