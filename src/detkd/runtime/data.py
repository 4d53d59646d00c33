"""The data of a distillation: which set, which classes, and what the student is scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.utils.data import Subset

from detkd.data.datamodule import DetectionDataModule
from detkd.data.dataset import DetectionDataset
from detkd.data.formats import Role, open_dataset, standard_classes
from detkd.data.identity import set_sha256, truths_sha256
from detkd.data.scenes import CLASSES
from detkd.data.store import find_latest_store
from detkd.detectors.checkpoint import fingerprint
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.evaluation.coco import Scores, detect, detect_images, score
from detkd.runtime.run import device_of
from detkd.structures import DetectorSpec

KEYS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "images")


def classes_of(cfg: DictConfig) -> tuple[str, ...]:
    """The class names of the data set, for a student that is told no others and has no teacher."""
    if cfg.student.get("classes") is not None or "classes" not in cfg.student:
        return ()
    if "variant" in cfg.data:
        if cfg.data.variant not in CLASSES:
            raise InputError(f"data.variant: expected one of {sorted(CLASSES)}, found {cfg.data.variant!r}")
        return CLASSES[cfg.data.variant]
    if cfg.data.get("root") is None:
        raise InputError("data.root: expected a folder of images with boxes to train on, found none")
    return standard_classes(cfg.data.format) or open_labelled(cfg.data, None, "train").classes


def open_labelled(node: DictConfig, spec: DetectorSpec | None, role: Role = "score") -> DetectionDataset:
    """The set that a node with the keys root and format names, whole and with its boxes, for a detector of this spec.

    spec: None reads the class names alone.
    """
    known = ("annotations", "split", "difficult", "length", "cache", "on_unknown", "invalid_boxes")
    return open_dataset(
        node.root,
        node.format,
        role=role,
        classes=None if spec is None else spec.classes,
        image_size=(32, 32) if spec is None else spec.image_size,
        resize="stretch" if spec is None else spec.resize,
        **{key: node[key] for key in known if key in node},
    )


def settle_root(cfg: DictConfig, teacher: Detector | None) -> None:
    """Write the set that was made for this teacher last into ``data.root`` where that is left open.

    Raises InputError when there is none, with the command that makes one.
    """
    with open_dict(cfg):
        if "root" in cfg.data and cfg.data.root is None:
            if cfg.data.format != "folder":
                raise InputError(
                    f"data.root: expected the folder of the set, like data.root=DIR with data={cfg.data.format}, found none"
                )
            cfg.data.root = str(_latest_set(teacher))


def build_datamodule(cfg: DictConfig, student: Detector, teacher: Detector | None) -> DetectionDataModule:
    """The DataModule of ``cfg.data`` at the student's size, of :func:`settle_root` where none is named.

    Raises InputError for options that contradict each other.
    """
    settle_root(cfg, teacher)
    extra = {"proxy": cfg.labels != "real"} if {"root", "variant"} & set(cfg.data) else {}  # noise has no boxes
    val: DetectionDataset | None = None
    if cfg.select not in ("last", "holdout", "val"):
        raise InputError(f"select: expected one of last, holdout, val, found {cfg.select!r}")
    if cfg.select == "val":
        if cfg.val.root is None:
            raise InputError("select=val: expected images with boxes to choose by (val.root=DIR), found none")
        val = open_labelled(OmegaConf.create({**cfg.val, "cache": cfg.data.cache}), student.spec)
    if cfg.select != "last" and cfg.steps < cfg.val_every:
        raise InputError(f"val_every: expected at most steps={cfg.steps} with select={cfg.select}, found {cfg.val_every}")
    if cfg.select == "holdout" and not cfg.data.holdout:
        raise InputError("select=holdout: expected a fraction to hold out, like data.holdout=0.05, found none")
    make = instantiate(cfg.data, _partial_=True)  # called here, since Hydra would copy a data set
    datamodule: DetectionDataModule = make(
        val=val,
        classes=student.spec.classes,
        image_size=student.spec.image_size,
        resize=student.spec.resize,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        **extra,
    )
    return datamodule


def _latest_set(teacher: Detector | None) -> Path:
    if teacher is None:
        raise InputError("data.root: expected a folder of images with boxes to train on, found none")
    found = find_latest_store("runs", fingerprint(teacher))
    if found is None:
        raise InputError(
            "data.root: expected a folder, or a complete set made for this teacher under runs/, found none; "
            f"make one with: python -m detkd.invert {' '.join(_teacher_overrides())}"
        )
    return found


def _teacher_overrides() -> list[str]:
    """What this command line says of the teacher, so that another command can say the same."""
    given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return [o for o in given if o.startswith("teacher")] or ["teacher=scenes"]


def score_student(cfg: DictConfig, student: Detector, datamodule: DetectionDataModule) -> dict[str, Any]:
    """COCO scores on ``val.root``, else on what was held out; None where there are no boxes to score on.

    It runs where it was trained.
    """
    device = device_of("auto" if cfg.trainer.accelerator in ("auto", "gpu", "cuda") else "cpu")
    if cfg.val.root is not None:
        dataset = open_labelled(cfg.val, student.spec)
        truths = [dataset.ground_truth(i) for i in range(len(dataset))]
        return _results(evaluate(student, dataset, device=device), str(cfg.val.root), truths)
    if cfg.data.holdout and datamodule.val_set is not None:
        held_out = datamodule.val_set
        if isinstance(held_out, Subset) and isinstance(whole := held_out.dataset, DetectionDataset):
            if not whole.labelled:
                return dict.fromkeys(KEYS) | {"scored_on": None}
            truths = [whole.ground_truth(i) for i in held_out.indices]
            scores = score(detect(student, held_out, device=device), truths, student.spec.classes)
            return _results(scores, "held-out images", truths)
        samples = [datamodule.val_set[i] for i in range(len(datamodule.val_set))]  # type: ignore[arg-type]
        if all(sample["target"] is not None for sample in samples):
            detections = detect_images(student, [sample["image"] for sample in samples], device=device)
            targets = [sample["target"] for sample in samples]
            return _results(score(detections, targets, student.spec.classes), "held-out images", targets)
    return dict.fromkeys(KEYS) | {"scored_on": None}


def evaluate(detector: Detector, dataset: DetectionDataset, batch_size: int = 16, device: str = "cpu") -> Scores:
    """Detect and score on a labelled set, in original pixels."""
    detections = detect(detector, dataset, batch_size, device)
    return score(detections, [dataset.ground_truth(i) for i in range(len(dataset))], detector.spec.classes)


def _results(scores: Scores, scored_on: str, truths: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    about = {"scored_on": scored_on, "scored_sha256": truths_sha256(truths, tuple(scores.per_class))}
    return {key: getattr(scores, key) for key in KEYS} | about


def training_set(node: DictConfig) -> str | None:
    """The checksum of the set that was trained on; None where no file describes it (drawn scenes, noise, images alone)."""
    return None if node.get("root") is None else set_sha256(node.root, node.get("annotations"))


def summary(scores: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    if scores["ap50"] is None:
        return "not scored: no boxes to score on (val.root=DIR, or data.holdout=0.05 of a labelled set)"
    return f"AP50 {scores['ap50']:.3f}, AP {scores['ap']:.3f} on {scores['images']} images ({scores['scored_on']})"
