"""Terms that look at boxes, in training: two-stage and dense students of a two-stage teacher, with every kind of labels."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from detkd.data.datamodule import collate
from detkd.detectors.torchvision import FCOS, FasterRCNN
from detkd.distillation.module import DistillationModule
from detkd.losses.careg import ClassAwareRegression
from detkd.losses.composite import Composite
from detkd.losses.contrastive import Contrastive
from detkd.losses.defeat_backbone import DeFeatBackbone
from detkd.losses.defeat_proposals import DeFeatProposals
from detkd.losses.detection import DetectionLoss
from detkd.losses.prediction import PredictionImitation
from detkd.losses.sgfi import SGFI

SGD = partial(torch.optim.SGD, lr=0.001, momentum=0.9)
SMALL: dict[str, Any] = {
    "classes": ("circle", "square", "cross"),
    "image_size": (64, 64),
    "backbone": "resnet18",
    "width": 0.125,
}
ROI: dict[str, Any] = {"anchor_size": 8, "roi_width": 32, "rois": 16, "proposals": 24, "train_proposals": 24}
V2 = "fasterrcnn_resnet50_fpn_v2"  # with norms in its RoI head


def pair(kind: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    teacher = FasterRCNN(channels=16, score_threshold=0.01, **SMALL, **ROI)
    return (FCOS(channels=24, **SMALL) if kind == "fcos" else FasterRCNN(V2, channels=24, **SMALL, **ROI)), teacher


def composite(kind: str, labels: str) -> Composite:
    terms: dict[str, Any] = {"sgfi": SGFI(16), "prediction": PredictionImitation(per_image=16)}
    terms["contrastive"] = Contrastive(per_image=16, width=8, queue=100)
    if labels != "none":
        terms["detection"] = DetectionLoss()
    if kind == "faster_rcnn":
        terms |= {"defeat_proposals": DeFeatProposals(per_image=16), "careg": ClassAwareRegression(per_image=16)}
        terms |= {"defeat_backbone": DeFeatBackbone()}
    return Composite(terms, dict.fromkeys(terms, 0.1))


def fit(module: DistillationModule, data: Any, ckpt: Path | None = None, **arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(**(quiet | {"enable_checkpointing": "callbacks" in arguments, "devices": 1} | arguments))
    torch.manual_seed(1)  # of the adapters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(data, batch_size=2, collate_fn=collate), ckpt_path=None if ckpt is None else str(ckpt))
    return trainer


def test_queues_and_the_teacher_are_not_sent_between_processes(tmp_path: Path) -> None:
    """DistributedDataParallel sends buffers from the first process in every step; a queue is 42 MB at its default size."""
    module = DistillationModule(*pair("faster_rcnn"), composite("faster_rcnn", "none"), SGD, ema_decay=None)
    module.setup("fit")
    distributed.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    try:
        sent = set(DistributedDataParallel(module).named_module_buffers)
    finally:
        distributed.destroy_process_group()
    own = {f"student.{name}" for name, _ in module.student.named_buffers()}  # type: ignore[attr-defined]
    assert own
    assert sent == own
    assert any("queues.0.rows" in name for name, _ in module.named_buffers())


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos"])
@pytest.mark.parametrize("labels", ["real", "teacher", "none"])
def test_a_few_steps_with_every_kind_of_labels(kind: str, labels: Any, doubles: Any) -> None:
    student, teacher = pair(kind)
    names, before, frozen = set(student.state_dict()), copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    module = DistillationModule(
        student, teacher, composite(kind, labels), SGD, labels=labels, label_threshold=0.01, ema_warmup=2, check_every=1
    )
    run = fit(module, doubles.Squares(4, labelled=labels == "real"), max_epochs=1)
    assert run.global_step == 2
    assert {"train/sgfi", "train/prediction", "train/contrastive", "train/contrastive/bound"} <= run.logged_metrics.keys()
    assert all(torch.isfinite(torch.as_tensor(v)) for v in run.logged_metrics.values())
    assert all(torch.equal(v, frozen[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert set(module.final_student().state_dict()) == names  # no adapter comes along
    assert not all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    if kind == "faster_rcnn" and labels == "none":
        heads = [k for k in names if k.startswith("model.roi_heads") and "running" in k]
        assert heads
        assert all(torch.equal(student.state_dict()[k], before[k]) for k in heads)  # distillation teaches them nothing


def test_a_resumed_run_goes_on_with_the_adapters(doubles: Any, tmp_path: Path) -> None:
    def module() -> DistillationModule:
        return DistillationModule(*pair("fcos"), composite("fcos", "none"), SGD, ema_decay=None, warmup_steps=0)

    data = doubles.Squares(4, labelled=False)
    whole, first, second = module(), module(), module()
    steps = {"max_steps": 4}
    fit(whole, data, **steps)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(first, data, callbacks=[saver], **steps)
    half = tmp_path / "step=2.ckpt"
    saved = torch.load(half, weights_only=True)["state_dict"]
    assert {"loss.terms.sgfi.adapter.weight", "loss.terms.sgfi.log_temperature"} <= set(saved)
    at_half = saved["loss.terms.contrastive.queues.0._extra_state"].tolist()
    assert at_half == [12, 12]  # 3 boxes an image
    assert not any(name.startswith("teacher.") for name in saved)
    fit(second, data, ckpt=half, **steps)
    for part in ("student", "loss"):
        expected, found = getattr(whole, part).state_dict(), getattr(second, part).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.items()), part
    queue = second.loss.terms["contrastive"].queues[0]  # type: ignore[index]
    assert (queue.place, queue.filled) == (24, 24)
    assert not any("queue" in name or "projection" in name for name in second.final_student().state_dict())
