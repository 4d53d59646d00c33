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
from torch.utils.data import DataLoader

from detkd.data.datamodule import collate
from detkd.detectors.torchvision import FCOS, CascadeRCNN, FasterRCNN, FasterRCNNC4
from detkd.distillation.module import DistillationModule
from detkd.errors import InputError
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.losses.transfer_head import TransferHead

CLASSES = ("circle", "square", "cross")
BASE: dict[str, Any] = {"classes": CLASSES, "image_size": (64, 64), "backbone": "resnet18"}
ROI: dict[str, Any] = {"rois": 16, "proposals": 24, "train_proposals": 24}
FPN: dict[str, Any] = BASE | ROI | {"channels": 16, "roi_width": 32, "anchor_size": 16}
# teachers are twice as wide; only the C4 form's heads depend on that
KINDS: dict[str, Any] = {
    "v1": lambda wide: FasterRCNN(width=0.25 if wide else 0.125, **FPN),
    "v2": lambda wide: FasterRCNN("fasterrcnn_resnet50_fpn_v2", width=0.25 if wide else 0.125, **FPN),
    "cascade": lambda wide: CascadeRCNN(width=0.25 if wide else 0.125, **FPN),
    "c4": lambda wide: FasterRCNNC4(width=0.125, **BASE, **ROI),
}


def pair(kind: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    student, teacher = KINDS[kind](False), KINDS[kind](True)
    for norm in (m for m in teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    return student, teacher


def heads(detector: Any) -> dict[str, torch.Tensor]:
    return {f"{name}.{k}": v for name, m in detector.head_modules().items() for k, v in m.state_dict().items()}


def equal(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def distillation(kind: str, ema: float | None = 0.9, weight: float = 1.0) -> DistillationModule:
    terms = {"detection": DetectionLoss(), "transfer_head": TransferHead()}
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.01)
    loss = Composite(terms, {"detection": 1.0, "transfer_head": weight})
    return DistillationModule(*pair(kind), loss, sgd, labels="real", ema_decay=ema, warmup_steps=0)


def fit(module: DistillationModule, data: Any, ckpt: Path | None = None, **arguments: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        **(quiet | {"enable_checkpointing": "callbacks" in arguments, "devices": 1, "max_steps": 4} | arguments)
    )
    loader = DataLoader(data, batch_size=2, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader, loader, ckpt_path=None if ckpt is None else str(ckpt))
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_the_teachers_and_frozen(kind: str) -> None:
    student, teacher = pair(kind)
    before = copy.deepcopy(student.state_dict())
    assert not equal(heads(student), heads(teacher))
    TransferHead().setup(student, teacher)
    assert equal(heads(student), heads(teacher))
    frozen = [p for m in student.head_modules().values() for p in m.parameters()]
    assert frozen
    assert not any(p.requires_grad for p in frozen)
    assert sum(p.requires_grad for p in student.parameters()) == len(list(student.parameters())) - len(frozen)
    ours = {k for k in before if k.startswith("model.backbone")}
    assert all(torch.equal(student.state_dict()[k], before[k]) for k in ours)
    assert teacher.head_modules()["rpn"].training  # the teacher is left as it was
    assert all(p.requires_grad for p in teacher.parameters())


def test_its_norms_stay_in_eval_mode_when_all_around_is_switched() -> None:
    module = distillation("v2")
    module.setup("fit")
    module.train()
    assert module.student.training
    assert not any(m.training for head in module.student.head_modules().values() for m in head.modules())  # type: ignore[attr-defined]
    module.eval().train()
    assert not any(m.training for head in module.student.head_modules().values() for m in head.modules())  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["v2", "cascade"])
def test_training_leaves_them_and_trains_the_rest(kind: str, doubles: Any) -> None:
    module = distillation(kind)
    before = copy.deepcopy(module.student.state_dict())
    run = fit(module, doubles.Squares(4, labelled=True), num_sanity_val_steps=0)
    assert run.global_step == 4
    assert not any("transfer_head" in name for name in run.logged_metrics)
    assert equal(heads(module.student), heads(module.teacher))
    assert module.ema is not None
    assert equal(heads(module.ema.detector), heads(module.teacher))
    after = module.student.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in after.items() if "backbone.fpn" in k)
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert not held & {id(p) for m in module.student.head_modules().values() for p in m.parameters()}  # type: ignore[attr-defined]
    assert module.final_student().state_dict().keys() == before.keys()


def test_a_resumed_run_goes_on_with_them(doubles: Any, tmp_path: Path) -> None:
    data, whole, second = doubles.Squares(4, labelled=True), distillation("v2"), distillation("v2")
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(whole, data, callbacks=[saver])
    fit(second, data, tmp_path / "step=2.ckpt")
    assert equal(second.student.state_dict(), whole.student.state_dict())
    assert equal(heads(second.student), heads(second.teacher))


def test_weight_zero_leaves_the_student_its_heads() -> None:
    module = distillation("v1", weight=0.0)
    module.setup("fit")
    assert not equal(heads(module.student), heads(module.teacher))
    assert all(p.requires_grad for p in module.student.parameters())


def test_alone_it_is_an_error() -> None:
    with pytest.raises(InputError, match="expected a term that adds a loss, found transfer_head alone"):
        Composite({"transfer_head": TransferHead()}, {"transfer_head": 1.0})


def test_differences_are_named_and_nothing_is_changed() -> None:
    student, _ = pair("v1")
    cases: list[tuple[Any, str]] = [
        (
            FasterRCNN(width=0.25, **FPN | {"channels": 24}),
            r"'rpn\.conv.*weight': teacher \(24, 24, 3, 3\), student \(16, 16, 3, 3\)",
        ),
        (
            FasterRCNN(width=0.25, **FPN | {"roi_width": 48}),
            r"'roi_heads.box_head.fc6.weight': teacher \(48, 784\), student \(32, 784\)",
        ),
        (FasterRCNN("fasterrcnn_resnet50_fpn_v2", width=0.25, **FPN), r"'rpn\.conv\.\S+': teacher .*, student none"),
        (FasterRCNN(width=0.25, **FPN | {"anchor_size": 8}), "anchor_size: teacher 8, student 16"),
        (CascadeRCNN(width=0.25, **FPN), "detectors: teacher CascadeRCNN, student FasterRCNN"),
        (FasterRCNN(width=0.25, **FPN | {"classes": ("a", "b", "c")}), "expected the same classes"),
        (FCOS(**BASE, channels=24), "expected a teacher with a RoI head"),
        (None, "found no teacher"),
    ]
    before = copy.deepcopy(student.state_dict())
    for other, message in cases:
        with pytest.raises(InputError, match=message):
            TransferHead().setup(student, other)
    assert equal(student.state_dict(), before)
    assert all(p.requires_grad for p in student.parameters())
    _, other = pair("v2")
    mine = copy.deepcopy(other)
    mine.model.roi_heads.box_head[0][1].eps = 1e-3
    with pytest.raises(InputError, match=r"eps of 'roi_heads.box_head.0.1': teacher 1e-05, student 0.001"):
        TransferHead().setup(mine, other)
