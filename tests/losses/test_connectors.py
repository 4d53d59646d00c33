from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detkd.data.datamodule import collate
from detkd.detectors.checkpoint import save_checkpoint
from detkd.detectors.torchvision import FasterRCNN, RetinaNet
from detkd.distillation.module import DistillationModule
from detkd.errors import InputError
from detkd.losses.composite import Composite
from detkd.losses.connectors import Connectors, Level, match_levels, neck_strides
from detkd.losses.step import Step
from detkd.structures import Prediction

SMALL: dict[str, Any] = {"classes": ("a", "b"), "image_size": (64, 64), "backbone": "resnet18", "width": 0.125}


def prediction(*names: str, strides: tuple[int, ...] = (8, 16), size: int = 64, channels: int = 4) -> Prediction:
    """Maps of the stride in their names, filled with it."""
    features = {}
    for name in names:
        cells = max(1, size // 2 ** int(name[1]))
        features[name] = torch.full((1, channels, cells, cells), float(name[1]))
    return Prediction(raw={}, sizes=(), strides=strides, features=features, image_size=(size, size))


class Distance(nn.Module):
    """A term with nothing but connectors."""

    pools_batch = False
    needs_teacher = True

    def __init__(self, connectors: Connectors) -> None:
        super().__init__()
        self.connectors = connectors

    def setup(self, student: Any, teacher: Any) -> None:
        self.connectors.setup(student, teacher, "distance")

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"distance": torch.stack([(s - t).square().mean() for s, t in self.connectors(step).values()]).sum()}


def step_of(student: Any, teacher: Any, count: int = 2) -> Step:
    images = torch.rand(count, 3, *student.spec.image_size)
    return Step(images, None, teacher, teacher(images), student, student(images))


def test_neck_maps_are_those_named_p_and_backbone_stages_are_left_out() -> None:
    assert neck_strides(prediction("c3", "c4", "p3", "p4")) == {"p3": 8, "p4": 16}


def test_the_stride_is_the_heads_where_there_is_a_map_a_level() -> None:
    assert neck_strides(prediction("p3", "p7", "p8", strides=(8, 100, 300))) == {"p3": 8, "p7": 100, "p8": 300}
    assert neck_strides(prediction("p3", "p4", "p5")) == {"p3": 8, "p4": 16, "p5": 32}


def test_without_neck_maps_the_stages_of_the_heads_strides_stand_in(tiny_detector: Any) -> None:
    assert neck_strides(tiny_detector()(torch.rand(1, 3, 64, 64))) == {"c3": 8}


def test_levels_are_paired_by_stride_whatever_their_names() -> None:
    pairs = match_levels(prediction("c3", "c4"), prediction("c3", "c4", "p3", "p4"))
    assert pairs == [Level("c3", "p3"), Level("c4", "p4")]


def test_levels_that_do_not_match_are_named_with_strides_and_a_way_out() -> None:
    student, teacher = prediction("p3", "p4", "p5"), prediction("p2", "p3", "p4")
    with pytest.raises(InputError) as error:
        match_levels(student, teacher, term="ssim")
    assert str(error.value) == (
        "loss 'ssim': expected feature levels of the same strides, found p3 (8 px), p4 (16 px), p5 (32 px) of the student and "
        "p2 (4 px), p3 (8 px), p4 (16 px) of the teacher; loss.ssim.levels=[p3,p4] takes those that both have"
    )
    assert match_levels(student, teacher, ["p3", "p4"]) == [Level("p3", "p3"), Level("p4", "p4")]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["p3", "p9"], r"loss.ssim.levels: expected maps of the student \['p3', 'p4'\], got \['p9'\]"),
        ([], "names that differ"),
        (["p3", "p3"], "names that differ"),
    ],
)
def test_wrong_levels_are_refused(levels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_levels(prediction("p3", "p4"), prediction("p3", "p4"), levels, "ssim")


def test_a_level_that_the_teacher_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"maps of the teacher \['p3'\], got \['p4'\]"):
        match_levels(prediction("p3", "p4"), prediction("p3"), ["p4"])


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"found \(8, 8\) for 'p3' of the student and \(12, 12\) for 'p3' of the teacher"):
        match_levels(prediction("p3", "p4"), prediction("p3", "p4", size=96))


@pytest.mark.parametrize(("width", "kind"), [(4, "1x1"), (12, "1x1"), (8, "3x3"), (12, "3x3")])
def test_a_student_of_any_width_is_brought_to_the_teachers_channels(tiny_detector: Any, width: int, kind: Any) -> None:
    student, teacher = tiny_detector(width=width), tiny_detector()
    connectors = Connectors(kind)
    connectors.setup(student, teacher, "distance")
    step = step_of(student, teacher)
    pairs = connectors(step)
    assert list(pairs) == ["c3"]
    assert connectors.channels == {"c3": 32}
    mine, theirs = pairs["c3"]
    assert mine.shape == theirs.shape == (2, 32, 8, 8)
    assert mine.requires_grad
    assert not theirs.requires_grad
    assert theirs.equal(step.teacher_prediction.features["c3"])  # type: ignore[union-attr]
    size = 1 if kind == "1x1" else 3
    assert connectors.maps["c3"].weight.shape == (32, 4 * width, size, size)
    assert connectors.maps["c3"].bias is not None


def test_equal_channels_need_no_convolution_of_1x1(tiny_detector: Any) -> None:
    student, teacher = tiny_detector(), tiny_detector()
    connectors = Connectors()
    connectors.setup(student, teacher, "distance")
    step = step_of(student, teacher)
    assert connectors(step)["c3"][0] is step.student_prediction.features["c3"]  # type: ignore[union-attr]
    assert not list(connectors.parameters())


def test_near_zero_start_gives_almost_nothing(tiny_detector: Any) -> None:
    student, teacher = tiny_detector(), tiny_detector()
    connectors = Connectors("3x3", "near_zero")
    connectors.setup(student, teacher, "distance")
    step = step_of(student, teacher)
    assert 0 < connectors(step)["c3"][0].abs().max() < 0.2 * step.student_prediction.features["c3"].abs().max()  # type: ignore[union-attr]
    assert not connectors.maps["c3"].bias.any()


@pytest.mark.parametrize("options", [{"kind": "5x5"}, {"init": "zero"}])
def test_unknown_options_are_refused(options: Any) -> None:
    with pytest.raises(InputError, match="connectors"):
        Connectors(**options)


def test_a_missing_teacher_is_named(tiny_detector: Any) -> None:
    with pytest.raises(InputError, match=r"loss 'distance': .* no teacher"):
        Connectors().setup(tiny_detector(), None, "distance")


def test_setup_in_a_composite_leaves_detectors_and_random_state_as_they_were(tiny_detector: Any) -> None:
    student, teacher = tiny_detector(width=4).train(), tiny_detector().eval()
    before, state = copy.deepcopy(student.state_dict()), torch.random.get_rng_state()
    Composite({"distance": Distance(Connectors())}, {"distance": 1.0}).setup(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert student.training
    assert not teacher.training


def test_torchvision_pairs() -> None:
    torch.manual_seed(0)
    student = RetinaNet(channels=16, **SMALL).eval()
    teacher = FasterRCNN(channels=24, roi_width=16, **SMALL).eval()
    with pytest.raises(InputError, match=r"p7 \(128 px\) of the student and p2 \(4 px\).*levels=\[p3,p4,p5,p6\]"):
        Connectors().setup(student, teacher, "distance")
    connectors = Connectors(levels=["c4", "p3", "p6"])
    connectors.setup(student, teacher, "distance")
    pairs = connectors(step_of(student, teacher))
    assert {name: tuple(mine.shape) for name, (mine, _) in pairs.items()} == {
        name: tuple(theirs.shape) for name, (_, theirs) in pairs.items()
    }
    assert isinstance(connectors.maps["c4"], nn.Identity)


def test_trained_with_the_loss_kept_in_checkpoints_and_no_part_of_the_student(
    tiny_detector: Any, doubles: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    student, teacher = tiny_detector(width=4), tiny_detector()
    names = student.state_dict().keys()

    def module(of: Any) -> DistillationModule:
        loss = Composite({"distance": Distance(Connectors())}, {"distance": 1.0})
        return DistillationModule(of, teacher, loss, partial(torch.optim.SGD, lr=0.1, momentum=0.9), warmup_steps=0)

    def fit(of: DistillationModule, steps: int, callbacks: list[Any], ckpt: Path | None = None) -> None:
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": bool(callbacks),
        }
        trainer = pl.Trainer(accelerator="cpu", max_steps=steps, callbacks=callbacks, **quiet)  # type: ignore[arg-type]
        data = DataLoader(doubles.Squares(8, labelled=False), batch_size=4, collate_fn=collate)  # an epoch has two steps
        trainer.fit(of, data, ckpt_path=None if ckpt is None else str(ckpt))

    fresh, straight = copy.deepcopy(student), module(student)
    start: list[Tensor] = []

    class Watch(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            start.append(pl_module.loss.terms["distance"].connectors.maps["c3"].weight.detach().clone())

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(straight, 4, [Watch(), saver])
    weight = straight.loss.terms["distance"].connectors.maps["c3"].weight  # type: ignore[union-attr, index]
    assert not torch.equal(weight, start[0])
    half = tmp_path / "step=2.ckpt"
    saved = torch.load(half, weights_only=True)
    assert saved["global_step"] == 2
    state = saved["state_dict"]
    assert "loss.terms.distance.connectors.maps.c3.weight" in state
    resumed = module(fresh)
    fit(resumed, 4, [], half)
    assert resumed.state_dict().keys() == straight.state_dict().keys()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, straight.state_dict()[name]), name
    final = straight.final_student()
    assert final.state_dict().keys() == names
    save_checkpoint(final, tmp_path / "student.safetensors")


def test_named_levels_of_other_strides_are_no_pair() -> None:
    with pytest.raises(
        InputError, match=r"loss\.ssim\.levels: expected 'p4' .* found 16 px of the student and 32 px of the teacher"
    ):
        match_levels(prediction("p3", "p4", strides=(8, 16)), prediction("p3", "p4", strides=(8, 32)), ["p3", "p4"], "ssim")
    same = match_levels(prediction("p3", "p4", "c4"), prediction("p3", "p4", "c4"), ["p4", "c4"], "ssim")
    assert same == [Level("p4", "p4"), Level("c4", "c4")]
