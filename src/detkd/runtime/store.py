"""The data set that an inversion writes: what its recipe is, and how good its images are as stored."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig, OmegaConf

from detkd.classes import label_map
from detkd.data.progress import ProgressReader
from detkd.data.store import Store, StoreWriter
from detkd.detectors.checkpoint import fingerprint
from detkd.detectors.protocol import Detector
from detkd.disk import sha256_of
from detkd.errors import InputError
from detkd.evaluation.coco import ap50, detect_images
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Stage
from detkd.inversion.writer import StoreBatches
from detkd.runtime.run import RESULTS_FILE
from detkd.structures import Detection, Target

# What determines the images. The rest of the config says where, on what and how watched a run is.
RECIPE = (
    *("image", "loss", "layout", "augmentation", "sampling", "warm_start", "accept"),
    *("n_images", "batch_size", "seed", "look_every", "fold", "channels_last", "compile"),
)
TELL_EVERY = 30.0  # seconds between reports of how far a set is
# What a run leaves beside its set.
BESIDE = (
    "config.yaml",
    "results.json",
    "metrics*.csv",
    "hparams.yaml",
    "pictures",
    "wandb",
    "tensorboard",
    "report",
    "*.log",
    "*.out",
    "lightning_logs",
    "README.md",
    "gallery",
    "duplicates.json",
    "multirun.yaml",
)


def recipe(cfg: DictConfig, stages: Sequence[Stage], teacher: Detector, verifier: Detector | None = None) -> dict[str, Any]:
    """The resolved part of the config that determines the images, json-able.

    Detectors are in it as what they are, not as the files they came from: class, hash of the arguments, hash of the weights (that of
    the teacher's the store has).
    """
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    kept = {key: resolved[key] for key in RECIPE}
    nodes = [node for node in resolved["stages"] if node is not None][: len(stages)]
    kept["stages"] = [
        node | {"resolution": list(stage.resolution), "iterations": stage.iterations} for node, stage in zip(nodes, stages)
    ]
    kept["accept"] = {key: value for key, value in kept["accept"].items() if key != "rejected"}  # decided at the end
    if "annotations" in kept["layout"]:
        kept["layout"] = kept["layout"] | {"annotations": sha256_of(Path(kept["layout"]["annotations"]))}
    arguments = hashlib.sha256(json.dumps(teacher.arguments(), sort_keys=True).encode()).hexdigest()
    kept["teacher"] = {"architecture": type(teacher).__name__, "arguments_sha256": arguments}
    kept["verifier"] = None if verifier is None else fingerprint(verifier)
    return kept | {"precision": str(resolved["trainer"]["precision"])}


def open_writer(
    cfg: DictConfig, folder: Path, teacher: Detector, verifier: Detector | None, stages: Sequence[Stage]
) -> StoreWriter:
    """The store in ``folder``: new, or the same run's to go on with. Raises InputError for another run's."""
    return StoreWriter(
        folder,
        recipe(cfg, stages, teacher, verifier),
        teacher.spec.classes,
        stages[-1].resolution,
        teacher_sha256=fingerprint(teacher),
        seed=cfg.seed,
        beside=BESIDE,
    )


def images_in(cfg: DictConfig, shards: Collection[int]) -> int:
    """How many images these shards hold."""
    return sum(min(cfg.batch_size, cfg.n_images - index * cfg.batch_size) for index in shards)


def score_images(store: Store, teacher: Detector, verifier: Detector | None, device: str = "cpu") -> dict[str, Any]:
    """AP50 of the teacher, and of the verifier if there is one, on the 8-bit images as stored, in all, by class and by size.

    Read shard by shard. Also how many objects an image has, before and after the teacher's own were added, and the share of images that
    reached every threshold.
    """
    targets: list[Target] = []
    found: dict[str, list[Detection]] = {"teacher": [], "verifier": []}
    for index in range(store.n_shards):
        shard = store.read_shard(index)
        targets += shard.targets
        for name, detector in (("teacher", teacher), ("verifier", verifier)):
            if detector is not None and shard.targets:
                found[name] += detect_images(detector, list(shard.images), device=device)
    results: dict[str, Any] = {"teacher_ap50": None, "verifier_ap50": None}
    for name, detector in (("teacher", teacher), ("verifier", verifier)):
        if detector is None:
            continue
        order = torch.tensor(label_map(teacher.spec.classes, detector.spec.classes, name))
        named: list[Target] = [{"boxes": t["boxes"], "labels": order[t["labels"]]} for t in targets]
        scores = ap50(found[name], named, detector.spec.classes)
        results[f"{name}_ap50"] = scores.value
        results[f"{name}_by_size"] = {"small": scores.small, "medium": scores.medium, "large": scores.large}
        results[f"{name}_by_class"] = scores.per_class
    count = len(store)
    return results | {
        "objects_per_image": sum(len(t["labels"]) for t in targets) / count,
        "objects_per_image_start": sum(record["objects_start"] for record in store.records) / count,
        "accepted": sum(record["accepted"] for record in store.records) / count,
        "agreement": sum(record["agreement"] for record in store.records) / count,
    }


@contextmanager
def batches(
    cfg: DictConfig, writer: StoreWriter, module: InversionModule, trainer: lightning.Trainer
) -> Iterator[StoreBatches]:
    """The batches of a run, shared with all that work on the folder; the first process repairs it and tells how far it is.

    Where a run fails before anything is written, its folder is given up.
    """
    reader, told = ProgressReader(writer.root), [time.monotonic()]

    def tell(index: int) -> None:
        if time.monotonic() - told[0] > TELL_EVERY:
            told[0] = time.monotonic()
            with suppress(InputError, OSError):
                print(f"{writer.root}: {reader.read().line()}", flush=True)

    bank = 0 if module.warm_start is None else min(module.warm_start.batches, module.n_batches)
    shared = StoreBatches(
        writer,
        module.n_batches,
        first=bank,
        turn=trainer.global_rank + int(cfg.worker) * trainer.world_size,
        turns=max(trainer.world_size, int(cfg.worker) + 1),
        written=tell if trainer.is_global_zero else None,
    )
    try:
        if trainer.is_global_zero:
            for index, damage in writer.repair().items():
                print(f"shard {index} is damaged and is made again: {damage}", flush=True)
        yield shared
        shared.settle()
    except BaseException as error:
        # Lightning ends the processes that it started with this one only on an interrupt
        for process in getattr(trainer.strategy.launcher, "procs", None) or []:
            process.terminate()
        if isinstance(error, Exception):
            writer.withdraw()
        raise
    finally:
        shared.close()


def missing(writer: StoreWriter, module: InversionModule) -> int:
    """How many batches are not written."""
    return module.n_batches - len(writer.finished())


def speed(folder: Path, images: int, made: int, seconds: float, compile_seconds: float = 0.0) -> dict[str, Any]:
    """How fast the images were made; where this run made none, what the run that did has put into results.json."""
    if made == 0:
        try:
            before = json.loads((folder / RESULTS_FILE).read_bytes())
            return {key: before[key] for key in ("images", "seconds", "compile_seconds", "images_per_second")}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it was interrupted before it could
    rate = made / seconds
    return {"images": images, "seconds": seconds, "compile_seconds": compile_seconds, "images_per_second": rate}


def summary(results: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    verifier = "" if results["verifier_ap50"] is None else f", verifier AP50 {results['verifier_ap50']:.3f}"
    compiled = f" after {results['compile_seconds']:.0f} s of compilation" if results["compile_seconds"] else ""
    speed = f"{results['seconds']:.0f} s, {results['images_per_second']:.3f} images/s{compiled}"
    return f"{results['images']} images, teacher AP50 {results['teacher_ap50']:.3f}{verifier}, {speed}"
