from __future__ import annotations

import copy
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detkd.data.augment import HorizontalFlip, Mosaic
from detkd.data.datamodule import collate
from detkd.distillation.module import DistillationModule
from detkd.distillation.schedule import warmup_cosine
from detkd.errors import InputError
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.losses.mimic import Mimic
from detkd.losses.weight_schedule import WeightSchedule

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def mimic() -> Composite:
    return Composite({"mimic": Mimic()}, {"mimic": 1.0})


def supervised() -> Composite:
    return Composite({"detection": DetectionLoss()}, {"detection": 1.0})


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trainer(**arguments: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": 1, **quiet, **arguments})


def fit(module: DistillationModule, data: Any, val: Any = None, ckpt: Path | None = None, **arguments: Any) -> pl.Trainer:
    done = trainer(**arguments)
    loaders = [None if part is None else DataLoader(part, batch_size=4, collate_fn=collate) for part in (data, val)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*warming up for.*")
        done.fit(module, *loaders, ckpt_path=None if ckpt is None else str(ckpt))
    return done


@pytest.fixture
def pair(tiny_detector: Any) -> tuple[Any, Any]:
    """Student, and a wider teacher."""
    torch.manual_seed(0)
    return tiny_detector(), tiny_detector(width=12)


def test_three_steps_change_the_student_and_nothing_of_the_teacher(pair: Any, doubles: Any) -> None:
    student, teacher = pair
    before, frozen = state_of(student), state_of(teacher)
    module = DistillationModule(student, teacher, mimic(), SGD, augmentation=HorizontalFlip(), ema_warmup=2)
    modes: list[tuple[bool, bool]] = []
    student.register_forward_hook(lambda m, *_: modes.append((m.training, teacher.training)))
    run = fit(module, doubles.Squares(12, labelled=False))
    assert run.global_step == 3
    assert not same(state_of(student), before)
    assert same(state_of(teacher), frozen)
    assert modes[-3:] == [(True, False)] * 3
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert {"train/loss", "train/mimic"} <= run.logged_metrics.keys()
    final = module.final_student()
    assert final is module.ema.detector
    assert module.ema.updates == 3
    assert not same(state_of(final), state_of(student))


def test_the_teacher_stays_in_eval_mode(pair: Any) -> None:
    module = DistillationModule(*pair, mimic(), SGD)
    module.train()
    assert module.student.training
    assert not any(part.training for part in module.teacher.modules())
    assert not any(part.training for part in module.ema.modules())


def test_mimic_brings_the_student_closer(pair: Any, doubles: Any) -> None:
    losses: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    module = DistillationModule(*pair, mimic(), partial(torch.optim.Adam, lr=0.02), warmup_steps=0)
    fit(module, doubles.Squares(4, labelled=False), max_epochs=40, callbacks=[Watch()])
    assert losses[-1] < 0.2 * losses[0]


def test_a_schedule_changes_the_weight_from_step_to_step_but_not_in_validation(pair: Any, doubles: Any) -> None:
    seen: list[tuple[float, float, float]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            metrics = trainer.callback_metrics
            seen.append((float(metrics["train/weight/mimic"]), float(metrics["train/loss"]), float(metrics["train/mimic"])))

    given: list[Any] = []
    schedule = WeightSchedule(warmup_steps=1, start=0.5, decay="linear", decay_from=0.5, end=0.5)
    loss = Composite({"mimic": Mimic()}, {"mimic": 2.0}, {"mimic": schedule})
    loss.register_forward_pre_hook(lambda _, arguments: given.append((loss.training, arguments[1:])))
    data = doubles.Squares(16, labelled=False)
    fit(DistillationModule(*pair, loss, SGD), data, val=data, callbacks=[Watch()], num_sanity_val_steps=0)
    assert [weight for weight, _, _ in seen] == pytest.approx([1.5, 2.0, 2.0, 1.5])
    assert [total for _, total, _ in seen] == pytest.approx([weight * part for weight, _, part in seen])
    assert [arguments for training, arguments in given if not training] == [()] * 4


@pytest.mark.parametrize("channels_last", [False, True])
def test_weight_zero_is_plain_training_bit_for_bit(pair: Any, doubles: Any, channels_last: bool) -> None:
    student, teacher = pair
    plain, data = copy.deepcopy(student), doubles.Squares(8)
    plain.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    loss = Composite({"detection": DetectionLoss(), "mimic": Mimic()}, {"detection": 1.0, "mimic": 0.0})
    torch.manual_seed(1)
    module = DistillationModule(student, teacher, loss, SGD, labels="real", warmup_steps=3, channels_last=channels_last)
    fit(module, data, max_epochs=10)

    decayed = [p for n, p in plain.named_parameters() if n.endswith("0.weight") or n == "head.weight"]
    others = [p for p in plain.parameters() if not any(p is d for d in decayed)]
    optimizer = SGD([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * warmup_cosine(step, 20, 3, 0.05)
        batch = collate([data[i] for i in range(4 * (step % 2), 4 * (step % 2) + 4)])
        optimizer.zero_grad()
        torch.stack(list(plain.loss(plain(batch.images.float() / 255), batch.targets).values())).sum().backward()
        optimizer.step()
    assert same(state_of(student), state_of(plain))


def test_the_teacher_is_not_run_where_nobody_asks(pair: Any, doubles: Any) -> None:
    student, teacher = pair
    teacher.forward = lambda images: pytest.fail("the teacher was run")
    fit(DistillationModule(student, teacher, supervised(), SGD, labels="real"), doubles.Squares(4))


def test_distilling_draws_nothing_from_the_global_random_state(pair: Any, doubles: Any) -> None:
    module = DistillationModule(*pair, mimic(), SGD, augmentation=HorizontalFlip())
    images = collate([doubles.Squares(4)[i] for i in range(4)])
    module.trainer = trainer()
    module.log = module.log_dict = lambda *_, **__: None
    before = torch.random.get_rng_state()
    module.setup("fit")
    module.training_step(images, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_checkpoint_holds_no_teacher_and_a_resumed_run_is_the_same_run(pair: Any, doubles: Any, tmp_path: Path) -> None:
    student, teacher = pair
    data, fresh = doubles.Squares(8, labelled=False), copy.deepcopy(student)

    def module(of: Any) -> DistillationModule:
        return DistillationModule(of, teacher, mimic(), SGD, HorizontalFlip(), ema_warmup=3, warmup_steps=2, seed=5)

    straight = module(student)
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(straight, data, val=doubles.Squares(4, seed=1), max_epochs=3, callbacks=[save], enable_checkpointing=True)
    path = tmp_path / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"student", "ema"}
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["best"]["loss"] < math.inf, "that of the validation just before it was written"

    resumed = module(fresh)
    fit(resumed, data, val=doubles.Squares(4, seed=1), ckpt=path, max_epochs=3)
    assert same(state_of(resumed.student), state_of(straight.student))
    assert same(state_of(resumed.ema.average), state_of(straight.ema.average))
    assert same(state_of(resumed.final_student("holdout")), state_of(straight.final_student("holdout")))


def test_checkpoint_of_another_student_is_an_error(pair: Any, tiny_detector: Any) -> None:
    student, teacher = pair
    checkpoint = {"state_dict": DistillationModule(tiny_detector(width=4), None, mimic(), SGD).state_dict()}
    with pytest.raises(InputError, match=r"checkpoint: expected the tensors of this student.*found 32 that do not fit: ema"):
        DistillationModule(student, teacher, mimic(), SGD).on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=r"do not fit: ema\."):
        DistillationModule(tiny_detector(width=4), teacher, mimic(), SGD, ema_decay=None).on_load_checkpoint(checkpoint)


def finds_two(prediction: Any) -> list[Any]:
    """What a teacher might find in each image: one thing for sure, another hardly."""
    boxes = torch.tensor([[1.0, 2, 9, 8], [3.0, 3, 6, 7]])
    return [
        {"boxes": boxes + i, "labels": torch.tensor([1, 0]), "scores": torch.tensor([0.9, 0.05])}
        for i in range(len(prediction))
    ]


def test_labels_of_the_teacher_are_its_confident_detections(pair: Any, doubles: Any) -> None:
    student, teacher = pair
    teacher.decode = finds_two
    seen: list[Any] = []
    student.loss = lambda prediction, targets: seen.append(targets) or {"zero": prediction.raw["obj"].sum() * 0}
    data = doubles.Squares(4, labelled=False)
    fit(DistillationModule(student, teacher, supervised(), SGD, labels="teacher", label_threshold=0.06), data)
    assert [target["boxes"].tolist() for target in seen[0]] == [[[1.0 + i, 2 + i, 9 + i, 8 + i]] for i in range(4)]
    assert [target["labels"].tolist() for target in seen[0]] == [[1]] * 4


@pytest.mark.parametrize(("looks", "calls"), [(False, 0), (True, 1)])
def test_the_teacher_labels_images_where_a_term_looks_once_a_step(pair: Any, doubles: Any, looks: bool, calls: int) -> None:
    student, teacher = pair
    counted: list[bool] = []
    teacher.decode = lambda prediction: counted.append(torch.is_grad_enabled()) or finds_two(prediction)

    class Looks(Mimic):
        def forward(self, step: Any) -> dict[str, Tensor]:
            assert len(step.targets) == 4
            if looks:
                assert [len(t["boxes"]) for t in step.objects(0.9)] == [len(t["boxes"]) for t in step.targets]
                assert [len(t["boxes"]) for t in step.targets] == [1] * 4
                assert step.image(1).targets[0] is step.targets[1]
            return super().forward(step)

    composite = Composite({"mimic": Looks()}, {"mimic": 1.0})
    fit(DistillationModule(student, teacher, composite, SGD, labels="teacher", label_threshold=0.06), doubles.Squares(4))
    assert counted == [False] * calls


def test_real_labels_must_be_there(pair: Any, doubles: Any) -> None:
    with pytest.raises(InputError, match="labels=real: expected annotations"):
        fit(DistillationModule(*pair, supervised(), SGD, labels="real"), doubles.Squares(4, labelled=False))


def test_without_labels_the_boxes_of_the_data_are_not_seen(pair: Any, doubles: Any) -> None:
    seen: list[Any] = []

    class Looks(Mimic):
        def forward(self, step: Any) -> dict[str, Tensor]:
            seen.append(step.targets)
            return super().forward(step)

    fit(DistillationModule(*pair, Composite({"mimic": Looks()}, {"mimic": 1.0}), SGD, labels="none"), doubles.Squares(4))
    assert seen == [None]


def test_a_term_that_needs_labels_without_any_is_an_error_before_the_first_step(pair: Any) -> None:
    with pytest.raises(InputError, match=r"loss 'detection': expected targets, found none \(labels=none\)"):
        DistillationModule(*pair, supervised(), SGD, labels="none").setup("fit")


def test_holdout_keeps_the_weights_of_the_lowest_loss(pair: Any, doubles: Any) -> None:
    module = DistillationModule(*pair, mimic(), SGD, ema_decay=None)
    losses, states = [], []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                losses.append(float(trainer.callback_metrics["val/loss"]))
                states.append(state_of(module.student))
                if len(losses) == 2:
                    nn.init.constant_(module.student.head.weight, 3.0)  # from here on it is worse

    fit(
        module,
        doubles.Squares(8, labelled=False),
        val=doubles.Squares(4, seed=1, labelled=False),
        max_epochs=4,
        callbacks=[Watch()],
    )
    best = min(range(4), key=losses.__getitem__)
    assert best < 2
    chosen = module.final_student("holdout")
    assert same(state_of(chosen), states[best])
    assert not chosen.training
    assert module.final_student("last") is module.student
    with torch.no_grad():
        images = doubles.Squares(4, seed=1).images.float() / 255
        expected = Mimic()(module._step(images, None, chosen))["mimic"]
    assert losses[best] == pytest.approx(float(expected), rel=1e-5)


def test_holdout_without_held_out_images(pair: Any) -> None:
    with pytest.raises(InputError, match="select=holdout"):
        DistillationModule(*pair, mimic(), SGD).final_student("holdout")


class Broken(nn.Module):
    """A term that turns bad at its third call."""

    pools_batch = False
    needs_teacher = False
    calls = 0

    def setup(self, student: Any, teacher: Any) -> None:
        pass

    def forward(self, step: Any) -> dict[str, Tensor]:
        self.calls += 1
        good = step.student_prediction.raw["obj"].mean()
        return {"broken": good * (math.nan if self.calls >= 3 else 1.0)}


@pytest.mark.parametrize(("every", "step"), [(1, 2), (2, 2), (50, 4)])
def test_a_loss_that_is_not_finite_stops_the_run(pair: Any, doubles: Any, every: int, step: int) -> None:
    loss = Composite({"mimic": Mimic(), "broken": Broken()}, {"mimic": 1e-9, "broken": 1.0})
    module = DistillationModule(*pair, loss, SGD, check_every=every)
    with pytest.raises(InputError, match=f"at step {step} that .*'broken' is nan"):
        fit(module, doubles.Squares(16))


def test_nothing_waits_for_the_device_between_checks(
    pair: Any, doubles: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits: list[int] = []  # the steps in which something asked for a tensor's value

    class Watch(pl.Callback):
        step: int | None = None

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.step = batch_idx

        def on_train_batch_end(self, *_: Any) -> None:
            self.step = None

    watch = Watch()

    def watched(method: Any) -> Any:
        def counted(*args: Any) -> Any:
            if watch.step is not None:
                waits.append(watch.step)
            return method(*args)

        return counted

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, watched(getattr(Tensor, name)))
    module = DistillationModule(*pair, mimic(), SGD, check_every=4)
    logger = CSVLogger(str(tmp_path))
    fit(
        module,
        doubles.Squares(40, labelled=False),
        callbacks=[watch],
        gradient_clip_val=1.0,
        logger=logger,
        log_every_n_steps=4,
    )
    assert set(waits) == {0, 4, 8}  # those of the check alone


def test_augmentation_differs_by_step_and_accumulated_batch_but_not_by_run(pair: Any, doubles: Any) -> None:
    def draws(seed: int) -> list[float]:
        seen: list[float] = []

        def augmentation(images: Tensor, targets: Any, generator: torch.Generator) -> Any:
            seen.append(float(torch.rand(1, generator=generator)))
            return images, targets

        student, teacher = copy.deepcopy(pair)
        module = DistillationModule(student, teacher, mimic(), SGD, augmentation, seed=seed, ema_warmup=1)
        fit(module, doubles.Squares(16), accumulate_grad_batches=2)
        assert module.ema.updates == 2
        return seen

    first, again, other = draws(0), draws(0), draws(1)
    assert first == again
    assert len({*first, *other}) == 8


def test_images_are_augmented_alike_under_autocast(pair: Any, doubles: Any) -> None:
    def shown(precision: str) -> list[Tensor]:
        seen: list[Tensor] = []
        mosaic = Mosaic()

        def augmentation(images: Tensor, targets: Any, generator: torch.Generator) -> Any:
            images, targets = mosaic(images, targets, generator)
            seen.append(images)
            return images, targets

        student, teacher = copy.deepcopy(pair)
        module = DistillationModule(student, teacher, mimic(), SGD, augmentation)
        fit(module, doubles.Squares(8), precision=precision)
        return seen

    plain, mixed = shown("32-true"), shown("bf16-mixed")
    assert len(plain) == 2
    for a, b in zip(plain, mixed, strict=True):
        assert torch.equal(a, b)


def test_terms_with_parameters_are_trained_along(pair: Any, doubles: Any) -> None:
    class Scaled(Mimic):
        def setup(self, student: Any, teacher: Any) -> None:
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, step: Any) -> dict[str, Tensor]:
            return {"scaled": super().forward(step)["mimic"] * self.scale}

    module = DistillationModule(*pair, Composite({"scaled": Scaled()}, {"scaled": 1.0}), SGD)
    fit(module, doubles.Squares(4))
    assert module.loss.terms["scaled"].scale.item() != 1.0


def test_mimic_without_teacher_is_an_error_before_the_first_step(pair: Any, doubles: Any) -> None:
    with pytest.raises(InputError, match="no teacher"):
        fit(DistillationModule(pair[0], None, mimic(), SGD), doubles.Squares(4))


def test_a_run_shorter_than_its_warmup_says_so(pair: Any, doubles: Any) -> None:
    module, done = DistillationModule(*pair, mimic(), SGD), trainer(max_epochs=2)
    with pytest.warns(UserWarning, match=r"warmup_steps=1000 is more than half of the run's 2 steps; warming up for 1"):
        done.fit(module, DataLoader(doubles.Squares(4), batch_size=4, collate_fn=collate))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": "gold"}, InputError, "labels: expected one of real, teacher, none, found 'gold'"),
        ({"labels": "teacher", "teacher": None}, InputError, "labels=teacher: expected a teacher"),
        ({"check_every": 0}, ValueError, "check_every"),
        ({"final_lr_fraction": 1.5}, ValueError, "final_lr_fraction"),
    ],
)
def test_bad_arguments(pair: Any, change: Any, error: type[Exception], message: str) -> None:
    arguments = {"student": pair[0], "teacher": pair[1], "loss": mimic(), "optimizer": SGD, **change}
    with pytest.raises(error, match=message):
        DistillationModule(**arguments)


def test_the_teacher_must_know_the_same_classes_to_label(pair: Any, tiny_detector: Any) -> None:
    other = DistillationModule(pair[0], tiny_detector(classes=("a", "b")), supervised(), SGD, labels="teacher")
    with pytest.raises(
        InputError, match="labels=teacher: expected the same classes, found number of classes: teacher 2, student"
    ):
        other.setup("fit")
    with pytest.raises(ValueError, match="same object"):
        DistillationModule(pair[0], pair[0], mimic(), SGD)


@pytest.mark.parametrize(("channels_last", "expected"), [("auto", True), (True, True), (False, False)])
def test_both_detectors_and_the_average_lie_in_one_memory_format(
    pair: Any, doubles: Any, channels_last: Any, expected: bool
) -> None:
    module = DistillationModule(*pair, mimic(), SGD, channels_last=channels_last)
    fit(module, doubles.Squares(4, labelled=False))
    assert module.ema is not None
    for detector in (module.student, module.teacher, module.ema.detector):
        weights = [p for p in detector.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert weights
        assert all(p.is_contiguous(memory_format=torch.channels_last) == expected for p in weights)


def test_a_memory_format_that_is_none(pair: Any, doubles: Any) -> None:
    module = DistillationModule(*pair, mimic(), SGD, channels_last="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="channels_last: expected auto, true or false, found 'yes'"):
        fit(module, doubles.Squares(4, labelled=False))
