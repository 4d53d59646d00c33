"""The experiments of the papers, as narrow and small as they can be: their detectors are built, their losses fit, and a step is taken."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from detkd.detectors.protocol import Detector
from detkd.distillation.module import DistillationModule
from detkd.losses.step import Step
from detkd.runtime import build
from detkd.runtime.run import config_dir

CONF = config_dir() / "experiment"
PAPERS = sorted(path.stem for path in CONF.glob("*.yaml") if re.match(r"(ssim|gdetkd|defeat)_", path.stem))
CLASSES = ("circle", "square", "cross")


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("distill", list(overrides))


def small(node: DictConfig, **settings: Any) -> Detector:
    """The detector of a student's node, narrow, at 64 px and on three classes."""
    names = {"width": 0.0625, "image_size": [64, 64], **settings} | ({"channels": 64} if "channels" in node.detector else {})
    for name, value in names.items():
        node.detector[name] = value
    made = build.build_detector(node, "student", classes=CLASSES)
    assert made is not None
    return made


def teacher_of(name: str, cfg: DictConfig) -> Detector:
    """A teacher of the architecture that the experiment asks for: what it names, or what the command in its comment trains."""
    text = (CONF / f"{name}.yaml").read_text()
    trained = re.search(r"^#   python -m detkd.distill (.*)$", text, flags=re.MULTILINE)
    if trained is not None:
        recipe = config(*shlex.split(trained[1]))
        assert not recipe.teacher
        assert [term for term, settings in recipe.loss.items() if "_target_" in settings] == ["detection"]
        assert recipe.labels == "real"
        return small(recipe.student)
    if name.endswith("scenes"):
        other = "scenes_retinanet_teacher" if "RetinaNet" in cfg.student.detector._target_ else "terms_teacher"
        recipe = config(f"+experiment={other}")
        assert f"+experiment={other}" in text
        return small(recipe.student)
    architecture = "retinanet_r50_fpn" if "RetinaNet" in cfg.teacher.detector._target_ else "fasterrcnn_r50_fpn"
    assert cfg.teacher.detector.weights == "COCO_V1"
    return small(config(f"student={architecture}").student)


@pytest.mark.parametrize("name", PAPERS)
def test_the_settings_of_the_papers(name: str) -> None:
    cfg = config(f"+experiment={name}", "data.root=DIR" if "scenes" not in name else "seed=0")
    assert "detection" in cfg.loss
    assert cfg.labels == "real"
    if "scenes" in name:
        return
    assert (cfg.optimizer.momentum, cfg.optimizer.weight_decay, cfg.batch_size) == (0.9, 1e-4, 16)
    assert cfg.optimizer.lr in (0.01, 0.02)
    assert (cfg.val.root, cfg.val.format) == ("DIR", cfg.data.format)
    assert cfg.steps == (18000 if cfg.data.format == "voc" else 90000)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_a_step_is_taken(name: str) -> None:
    torch.manual_seed(0)
    cfg = config(f"+experiment={name}", "data.root=DIR" if "scenes" not in name else "seed=0")
    for term in cfg.loss.values():
        for key, value in {"per_image": 8, "queue": 64}.items():
            if key in term:
                term[key] = value
    teacher, student = teacher_of(name, cfg), small(cfg.student)
    assert isinstance(teacher, torch.nn.Module)
    assert isinstance(student, torch.nn.Module)
    module = DistillationModule(student, teacher, build.build_loss(cfg.loss), instantiate(cfg.optimizer), labels="real")
    module.setup("fit")
    optimizer = module.optimizer(module.student.parameters())  # type: ignore[attr-defined]
    images = torch.rand(2, 3, 64, 64)
    targets: Any = [
        {"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    with torch.no_grad():
        seen = teacher(images)
    total, parts = module.loss(Step(images, targets, teacher, seen, student, student(images)))
    assert {part.split("/")[0] for part in parts} >= set(cfg.loss) - {"detection"}
    assert bool(torch.isfinite(total))
    total.backward()
    optimizer.step()
