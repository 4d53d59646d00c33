"""Train a student against a frozen teacher, or on labels alone, as a LightningModule."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from detkd.data.augment import Augmentation
from detkd.data.datamodule import Batch
from detkd.detectors.memory_format import memory_format
from detkd.detectors.protocol import Detector, Sampling
from detkd.distillation.ema import EMA
from detkd.distillation.optimizer import parameter_groups
from detkd.distillation.schedule import warmup_cosine
from detkd.errors import InputError
from detkd.losses.composite import Composite
from detkd.losses.detection import OTHER_CLASSES, no_targets
from detkd.losses.step import Step
from detkd.structures import Prediction, PseudoLabels, Target

Labels = Literal["real", "teacher", "none"]
Select = Literal["last", "holdout"]


class DistillationModule(pl.LightningModule):
    """One student, at most one frozen teacher, one composite loss.

    Args:
        student: trained in place. teacher: frozen and put into eval mode in place; None for supervised training.
        loss: asks for what it needs of a :class:`Step`; set up once, with student and teacher, before the optimiser is made, and trained along.
            Weights with a schedule change with the optimiser step in training, and are logged as "train/weight/<term>".
        optimizer: from parameter groups to an optimiser (a ``functools.partial``); its weight decay reaches convolutions and linear layers only.
        augmentation: of training images on their device; None for none.
        labels: whose boxes are the targets: "real" the data set's, "teacher" the teacher's detections on the augmented images, made where a
            term looks at them, or "none".
        label_threshold: a detection of the teacher must score more than this to become a label.
        ema_decay, ema_warmup: of the average of the student, see :class:`EMA`; decay None for no average.
        warmup_steps, final_lr_fraction: see :func:`warmup_cosine`; one step is one optimiser step.
        seed: of the augmentation, drawn anew by (seed, step, process), so that a resumed run draws the same.
        channels_last: of both detectors once a trainer has them, see :func:`memory_format`; "auto" decides for each.
        check_every: optimiser steps between looks at whether the loss is finite; besides it the host waits for the
            device where terms or labels choose boxes (proposals, decoding), and where a logger or the progress bar shows numbers.

    Images of a batch are uint8, or float in [0, 1]. A loader for validation holds out images: the loss on them, of the average where there
    is one, without augmentation and at the weights without their schedules, is logged as "val/loss", so that looks can be compared.

    The teacher is a plain submodule, so it moves between devices like everything else; :meth:`train` keeps it in eval mode and checkpoints leave
    it out. It is run, without gradients, only where a loss term or ``labels`` needs it, and draws from no global random state: a composite
    whose distillation terms have weight 0 is plain training, bit for bit.

    Raises InputError for options that contradict each other, ValueError for values out of range.
    """

    def __init__(
        self,
        student: Detector,
        teacher: Detector | None,
        loss: Composite,
        optimizer: Callable[..., Optimizer],
        augmentation: Augmentation | None = None,
        labels: Labels = "none",
        label_threshold: float = 0.3,
        ema_decay: float | None = 0.9998,
        ema_warmup: int = 2000,
        warmup_steps: int = 1000,
        final_lr_fraction: float = 0.05,
        seed: int = 0,
        channels_last: bool | Literal["auto"] = "auto",
        check_every: int = 50,
    ) -> None:
        super().__init__()
        if labels not in get_args(Labels):
            raise InputError(f"labels: expected one of {', '.join(get_args(Labels))}, found {labels!r}")
        if labels == "teacher" and teacher is None:
            raise InputError(
                "labels=teacher: expected a teacher, found none; for the boxes of the set: labels=real loss=[detection]"
            )
        if student is teacher:
            raise ValueError("expected two detectors, got the same object as student and teacher; copy.deepcopy one")
        if check_every < 1 or warmup_steps < 0 or not 0 <= final_lr_fraction <= 1:
            raise InputError(
                f"expected check_every >= 1, warmup_steps >= 0 and final_lr_fraction in [0, 1], got {check_every}, {warmup_steps}, {final_lr_fraction}"
            )
        self.student = student
        self.teacher = teacher
        self.loss = loss
        self.ema = None if ema_decay is None else EMA(student, ema_decay, ema_warmup)
        self.optimizer = optimizer
        self.augmentation = augmentation
        self.labels = labels
        self.label_threshold = label_threshold
        self.warmup_steps = warmup_steps
        self.final_lr_fraction = final_lr_fraction
        self.seed = seed
        self.channels_last = channels_last
        self.check_every = check_every
        self.strict_loading = False  # checkpoints have no teacher; on_load_checkpoint is strict about all else
        self._loss_is_set_up = False
        self._reach_is_known = False
        self._total_steps = 0  # known when the optimiser is made
        self._last: tuple[Tensor, dict[str, Tensor]] | None = None
        self._best_loss = float("inf")
        self._best_state: dict[str, Tensor] | None = None
        if teacher is not None:
            teacher.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> DistillationModule:
        """Switch the student, then the loss, whose terms may keep parts of the student in eval mode; teacher and average stay in it."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def setup(self, stage: str) -> None:
        """Set up the loss, once: here its terms check the two detectors and build their parameters; a term may prepare the student."""
        if not self._loss_is_set_up:
            for name, term in self.loss.terms.items():
                if getattr(term, "needs_targets", False):
                    self._check_labels(name)
            self.loss.setup(self.student, self.teacher)
            if self.ema is not None:
                self.ema.start(self.student)
            self._loss_is_set_up = True
            self._ddp_params_and_buffers_to_ignore = self._buffers_not_sent()  # DistributedDataParallel looks for this name
        if self._trainer is not None:  # before DistributedDataParallel takes the parameters as they lie
            device = self.trainer.strategy.root_device
            for detector in (self.student, self.teacher, None if self.ema is None else self.ema.detector):
                if detector is not None:
                    detector.to(memory_format=memory_format(detector, self.channels_last, device))

    def configure_optimizers(self) -> Any:
        """One optimiser over student and loss; warm-up and cosine, stepped with it."""
        optimizer = self.optimizer(parameter_groups(cast(nn.Module, self.student), self.loss))
        total = self.trainer.estimated_stepping_batches
        if not 0 < total < float("inf"):
            raise InputError(f"trainer: expected a run of finite length (max_steps or max_epochs), found {total} steps")
        warmup = min(self.warmup_steps, int(total) // 2)
        if warmup < self.warmup_steps:
            rank_zero_warn(
                f"warmup_steps={self.warmup_steps} is more than half of the run's {total} steps; warming up for {warmup}"
            )
        self._total_steps = int(total)
        factor = partial(warmup_cosine, total_steps=int(total), warmup_steps=warmup, final_fraction=self.final_lr_fraction)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def on_train_start(self) -> None:
        """Lightning leaves modes as it finds them; a student just loaded is in eval mode."""
        self.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted loss; every part is logged as "train/<part>"."""
        images, targets = self._images(batch), self._real_targets(batch)
        self._reseed(self.student, *self._place(batch_idx))
        if self.augmentation is not None:
            # Without autocast: of a grid to sample from, bfloat16 keeps no single pixels.
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                images, targets = self.augmentation(images, targets, self._generator(batch_idx))
        weights = self.loss.weights_at(self.global_step, self._total_steps)
        total, parts = self.loss(self._step(images, targets, self.student), weights)
        if self.global_step % self.check_every == 0:
            _check_finite(total, parts, self.global_step)
        self._last = total.detach(), {name: part.detach() for name, part in parts.items()}
        self.log("train/loss", total, prog_bar=True, on_step=True, on_epoch=False, batch_size=len(images))
        self.log_dict(
            {f"train/{name}": part for name, part in parts.items()}, on_step=True, on_epoch=False, batch_size=len(images)
        )
        self.log_dict(
            # tensors, since Lightning makes one on the device of a float, and waits for it
            {f"train/weight/{name}": torch.tensor(weight) for name, weight in weights.items()},
            on_step=True,
            on_epoch=False,
            batch_size=len(images),
        )
        return total

    def on_after_backward(self) -> None:
        """Say once which parameters the loss does not reach: they would stay as random as they are."""
        if self.global_step == 0 and not self._reach_is_known:
            self._reach_is_known = True
            cut_off = [
                name for name, p in cast(nn.Module, self.student).named_parameters() if p.requires_grad and p.grad is None
            ]
            if cut_off:
                rank_zero_warn(
                    f"{len(cut_off)} parameters of the student get no gradient from loss={list(self.loss.terms)}, {cut_off[0]} first; "
                    "of a two-stage detector, mimic reaches the RPN alone (add detection with labels=teacher)"
                )

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then let the average follow: once an optimiser step, however many batches were accumulated."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self.student)

    def on_train_end(self) -> None:
        """A run must not end on a loss that nobody looked at."""
        if self._last is not None:
            _check_finite(*self._last, self.global_step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of the average, or of the student where there is none, on held-out images."""
        images = self._images(batch)
        self._reseed(self._final(), "validation", batch_idx)  # so that looks at equal weights give equal losses
        total, _ = self.loss(self._step(images, self._real_targets(batch), self._final()))
        self.log("val/loss", total, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Remember the weights with the lowest loss on held-out images, before callbacks write a checkpoint on validation end."""
        if self.trainer.sanity_checking or "val/loss" not in self.trainer.callback_metrics:
            return
        loss = float(self.trainer.callback_metrics["val/loss"])
        if loss < self._best_loss:
            self._best_loss = loss
            self._best_state = {name: value.detach().cpu().clone() for name, value in self._final().state_dict().items()}

    def final_student(self, select: Select = "last") -> Detector:
        """The result, in eval mode: the average where there is one, else the student.

        select: "last" as it is now; "holdout" a copy with the weights of the lowest "val/loss".
        Raises InputError when no held-out images were scored.
        """
        if select not in get_args(Select):
            raise InputError(f"select: expected one of {', '.join(get_args(Select))}, found {select!r}")
        if select == "last":
            self._final().eval()
            return self._final()
        if self._best_state is None:
            raise InputError(
                "select=holdout: expected a loss on held-out images (a validation loader), found none; hold some out or use select=last"
            )
        best = copy.deepcopy(self._final())
        best.load_state_dict(self._best_state)
        best.eval()
        return best

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the teacher out: it is frozen, may be large, and has a file of its own."""
        checkpoint["state_dict"] = _without_teacher(checkpoint["state_dict"])
        checkpoint["best"] = {"loss": self._best_loss, "state_dict": self._best_state}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this student, average and loss (InputError), since loading itself is not strict."""
        mine, theirs = _without_teacher(self.state_dict()), checkpoint["state_dict"]
        wrong = sorted(mine.keys() ^ theirs.keys()) or sorted(
            name for name, value in mine.items() if value.shape != theirs[name].shape
        )
        if wrong:
            raise InputError(
                f"checkpoint: expected the tensors of this student, average and loss, found {len(wrong)} that do not fit: {wrong[0]}, ..."
            )
        best = checkpoint.get("best", {"loss": float("inf"), "state_dict": None})
        self._best_loss, self._best_state = best["loss"], best["state_dict"]

    def _check_labels(self, term: str) -> None:
        """Raises InputError unless there are labels that a term can train the student on."""
        if self.labels == "none":
            raise no_targets(term)
        if self.labels == "real" or self.teacher is None:
            return
        if difference := self.teacher.spec.class_difference(self.student.spec):
            raise InputError(f"labels=teacher: expected the same classes, found {difference}. {OTHER_CLASSES}")

    def _buffers_not_sent(self) -> list[str]:
        """Names of buffers that DistributedDataParallel need not send from the first process to all before each step.

        These are the teacher's, which never change, and of modules that say ``same_everywhere``, which change alike on every process.
        """
        return [
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if prefix.split(".")[0] == "teacher" or getattr(module, "same_everywhere", False)
            for name, _ in module.named_buffers(recurse=False)
        ]

    def _final(self) -> Detector:
        return self.student if self.ema is None else self.ema.detector

    def _images(self, batch: Batch) -> Tensor:
        images = batch.images
        return images.float() / 255 if images.dtype == torch.uint8 else images.float()

    def _real_targets(self, batch: Batch) -> list[Target] | None:
        if self.labels != "real":
            return None
        if batch.targets is None:
            raise InputError("labels=real: expected annotations in the data set, found none; use labels=teacher or labels=none")
        return list(batch.targets)

    def _place(self, batch_idx: int) -> tuple[int, ...]:
        # the place within an accumulation makes its batches differ
        return self.seed, self.global_step, batch_idx % self.trainer.accumulate_grad_batches, self.global_rank

    def _generator(self, batch_idx: int) -> torch.Generator:
        # on the CPU, so that every device draws the same
        return torch.Generator().manual_seed(_seed_of(*self._place(batch_idx)))

    def _reseed(self, detector: Detector, *place: int | str) -> None:
        """Let a detector that draws samples for its loss draw by the place in the run, so that a resumed run draws the same."""
        if isinstance(detector, Sampling):
            detector.reseed(_seed_of("sampling", *place))

    def _needs_teacher(self) -> bool:
        # a term that does not say is taken to need it
        return self.labels == "teacher" or any(getattr(term, "needs_teacher", True) for term in self.loss.terms.values())

    def _step(self, images: Tensor, targets: Sequence[Target] | None, student: Detector) -> Step:
        teacher_prediction: Prediction | None = None
        if self.teacher is not None and self._needs_teacher():
            with torch.no_grad():
                teacher_prediction = self.teacher(images)
            if self.labels == "teacher":
                targets = PseudoLabels(partial(self.teacher.decode, teacher_prediction), len(images), self.label_threshold)
        return Step(
            images=images,
            targets=targets,
            teacher=self.teacher,
            teacher_prediction=teacher_prediction,
            student=student,
            student_prediction=student(images),
        )


def _seed_of(*place: int | str) -> int:
    digest = hashlib.sha256(repr(place).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_finite(total: Tensor, parts: Mapping[str, Tensor], step: int) -> None:
    if bool(torch.isfinite(total)):
        return
    bad = [f"'{name}' is {part.item()}" for name, part in parts.items() if not bool(torch.isfinite(part))]
    raise InputError(
        f"loss: expected finite values, found at step {step} that {', '.join(bad) or f'the total is {total.item()}'}. "
        "Lower optimizer.lr or the term's weight, or train in float32"
    )


def _without_teacher(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith("teacher.")}
