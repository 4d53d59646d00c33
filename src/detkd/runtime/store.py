"""The data set that an inversion writes: what its recipe is, and how good its images are as stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detkd.data.store import StoreWriter
from detkd.detectors.checkpoint import fingerprint
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.evaluation.coco import ap50, detect_images
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Stage
from detkd.runtime.run import RESULTS_FILE
from detkd.structures import Detection, Target

# What determines the images. The rest of the config says where, on what and how watched a run is.
RECIPE = ("image", "loss", "layout", "augmentation", "n_images", "batch_size", "seed", "look_every", "fold", "channels_last")
# What a run leaves beside its set.
BESIDE = ("config.yaml", "results.json", "metrics.csv", "hparams.yaml", "pictures", "wandb", "*.log", "lightning_logs")


def recipe(cfg: DictConfig, stages: Sequence[Stage], teacher: Detector) -> dict[str, Any]:
    """The resolved part of the config that determines the images, json-able.

    The teacher is in it as what it is, not as the file it came from: its class and the hash of its arguments (the store
    has the hash of its weights).
    """
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    kept = {key: resolved[key] for key in RECIPE}
    nodes = resolved["stages"][: len(stages)]
    kept["stages"] = [
        node | {"resolution": list(stage.resolution), "iterations": stage.iterations} for node, stage in zip(nodes, stages)
    ]
    arguments = hashlib.sha256(json.dumps(teacher.arguments(), sort_keys=True).encode()).hexdigest()
    kept["teacher"] = {"architecture": type(teacher).__name__, "arguments_sha256": arguments}
    return kept | {"precision": str(resolved["trainer"]["precision"])}


def open_writer(cfg: DictConfig, folder: Path, teacher: Detector, stages: Sequence[Stage]) -> StoreWriter:
    """The store in ``folder``: new, or the same run's to go on with. Raises InputError for another run's."""
    return StoreWriter(
        folder,
        recipe(cfg, stages, teacher),
        teacher.spec.classes,
        stages[-1].resolution,
        teacher_sha256=fingerprint(teacher),
        seed=cfg.seed,
        beside=BESIDE,
    )


def images_in(module: InversionModule) -> int:
    """How many images the store already has."""
    last = module.n_batches - 1
    tail = module.n_images - last * module.batch_size
    return sum(tail if index == last else module.batch_size for index in module.done)


def score_images(
    writer: StoreWriter, n_shards: int, teacher: Detector, verifier: Detector | None, device: str = "cpu"
) -> dict[str, float | None]:
    """AP50 of the teacher, and of the verifier if there is one, on the 8-bit images as stored, read shard by shard."""
    targets: list[Target] = []
    by_teacher: list[Detection] = []
    by_verifier: list[Detection] = []
    for index in range(n_shards):
        shard = writer.read_shard(index)
        targets += shard.targets
        by_teacher += detect_images(teacher, list(shard.images), device=device)
        if verifier is not None:
            by_verifier += detect_images(verifier, list(shard.images), device=device)
    verified = None if verifier is None else ap50(by_verifier, _named(targets, teacher, verifier))
    return {"teacher_ap50": ap50(by_teacher, targets), "verifier_ap50": verified}


def speed(folder: Path, images: int, made: int, seconds: float) -> dict[str, Any]:
    """How fast the images were made; where this run made none, what the run that did has put into results.json."""
    if made == 0:
        try:
            before = json.loads((folder / RESULTS_FILE).read_bytes())
            return {key: before[key] for key in ("images", "seconds", "images_per_second")}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it was interrupted before it could
    return {"images": images, "seconds": seconds, "images_per_second": made / seconds}


def check_verifier(teacher: Detector, verifier: Detector | None) -> None:
    """Raise InputError where the verifier does not know a class of the teacher."""
    if verifier is not None and (unknown := sorted(set(teacher.spec.classes) - set(verifier.spec.classes))):
        raise InputError(f"verifier: expected a detector of the teacher's classes, found one without {unknown[:10]}")


def _named(targets: Sequence[Target], teacher: Detector, verifier: Detector) -> list[Target]:
    """The targets in the verifier's labels. Raises InputError where it does not know a class of the teacher."""
    check_verifier(teacher, verifier)
    order = [verifier.spec.classes.index(name) for name in teacher.spec.classes]
    return [{"boxes": t["boxes"], "labels": t["labels"].new_tensor([order[i] for i in t["labels"].tolist()])} for t in targets]


def summary(results: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    verifier = "" if results["verifier_ap50"] is None else f", verifier AP50 {results['verifier_ap50']:.3f}"
    speed = f"{results['seconds']:.0f} s, {results['images_per_second']:.3f} images/s"
    return f"{results['images']} images, teacher AP50 {results['teacher_ap50']:.3f}{verifier}, {speed}"
