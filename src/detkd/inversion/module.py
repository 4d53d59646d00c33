"""The LightningModule that optimises image tensors against a frozen detector.

Source: DIODE (Chawla et al., WACV 2021), section 3. One training step is one optimiser step on the current batch of images.
Images belong to their process alone and are never averaged over processes; a batch is a function of (seed, batch index), so
any number of processes makes the same set.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from detkd.boxes import clip_xyxy
from detkd.detectors.folding import TappedDetector
from detkd.detectors.protocol import Detector, Sampling
from detkd.errors import InputError
from detkd.inversion.augment import Augmentation
from detkd.inversion.image import Image, ImageFactory
from detkd.inversion.layout import Layout
from detkd.inversion.stage import IDLE, Stage, Work, WorkList, seed_of
from detkd.losses.composite import Composite
from detkd.losses.step import Step
from detkd.structures import Target


@dataclass
class Batch:
    """The batch in work. best: the images of lowest un-augmented loss so far, (B, 3, H, W), and that loss (B,)."""

    index: int
    targets: list[Target]
    generator: torch.Generator
    image: Image | None = None
    optimizer: Optimizer | None = None
    best: Tensor | None = None
    best_loss: Tensor | None = None


@dataclass(frozen=True)
class Finished:
    """A finished batch. images: (B, 3, H, W) in [0, 1], the best iterates; loss: (B,) theirs, un-augmented."""

    index: int
    images: Tensor
    targets: list[Target]
    loss: Tensor


class InversionModule(lightning.LightningModule):
    """Optimise images until a frozen detector sees the targets in them and its norms see what they remember.

    Args:
        teacher: the detector; frozen and set to eval mode, its weights never change.
        image: makes the parameters of a batch of images.
        loss: terms over a :class:`Step` without a student.
        layout: draws the targets. augmentation: applied to images and targets before every pass.
        stages: one after the other, each from the result of the one before.
        n_images, batch_size: the last batch may be smaller. seed: of everything but the layout.
        done: batches to leave out, already on disk.
        look_every: iterations between looks for the best iterate of each image.
        check_every: iterations between checks for a loss that is not finite, and between updates of the figures on screen.
        fold, channels_last: see :class:`TappedDetector`.

    Raises InputError when the loss is not finite, naming the term and the iteration.
    """

    def __init__(
        self,
        teacher: Detector,
        image: ImageFactory,
        loss: Composite,
        layout: Layout,
        augmentation: Augmentation,
        stages: Sequence[Stage],
        n_images: int,
        batch_size: int,
        seed: int = 0,
        done: Sequence[int] = (),
        look_every: int = 25,
        check_every: int = 10,
        fold: bool = True,
        channels_last: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if n_images < 1 or batch_size < 1:
            raise InputError(f"expected n_images and batch_size of at least 1, got {n_images} and {batch_size}")
        if look_every < 1 or check_every < 1:
            raise InputError(f"expected look_every and log_every of at least 1, got {look_every} and {check_every}")
        if not stages:
            raise InputError("stages: expected at least one stage, got none")
        if unknown := sorted({name for stage in stages for name in stage.weights} - set(loss.weights)):
            raise InputError(f"stages.weights: expected terms of the loss, {sorted(loss.weights)}, got {unknown}")
        self.automatic_optimization = False
        teacher.eval().requires_grad_(False)
        self.teacher = teacher
        self.image_factory, self.loss, self.layout, self.augmentation = image, loss, layout, augmentation
        self.stages, self.n_images, self.batch_size, self.seed = list(stages), n_images, batch_size, seed
        self.done, self.look_every, self.check_every = set(done), look_every, check_every
        self.fold, self.channels_last = fold, channels_last
        self.batch: Batch | None = None
        self._tapped: TappedDetector | None = None
        self._clock = (time.perf_counter(), 0)
        loss.setup(None, teacher)

    @property
    def n_batches(self) -> int:
        return -(-self.n_images // self.batch_size)

    def train_dataloader(self) -> DataLoader[Work]:
        """The steps of this process: every world_size-th of the batches that are not done."""
        missing = [i for i in range(self.n_batches) if i not in self.done]
        processes = self.trainer.world_size
        mine = missing[self.global_rank :: processes]
        # Lightning talks between processes in every step (has one been told to stop?), so all must take as many
        mine += [IDLE] * (-(-len(missing) // processes) - len(mine))
        return DataLoader(WorkList(mine, self.stages), batch_size=None)

    def configure_optimizers(self) -> None:
        """None: every batch and stage has an optimiser of its own."""

    def on_fit_start(self) -> None:
        self._tapped = TappedDetector(self.teacher, self.fold, self.channels_last)
        self._clock = (time.perf_counter(), 0)

    def on_fit_end(self) -> None:
        self._tapped = None
        self.batch = None

    def training_step(self, work: Work, _: int) -> dict[str, Any]:
        if work.batch == IDLE:
            return {"finished": None}
        stage = self.stages[work.stage]
        if work.iteration == 0:
            self._begin(work)
        batch, tapped = self.batch, self._tapped
        assert batch is not None
        assert tapped is not None
        assert batch.image is not None
        assert batch.optimizer is not None
        for group in batch.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * stage.lr_factor(work.iteration)

        clean = batch.image()
        images, targets = self.augmentation(clean, batch.targets, batch.generator)
        prediction, statistics = tapped.forward(images)
        step = Step(images, targets, tapped.detector, prediction, clean_images=clean, statistics=statistics)
        total, parts = self.loss(step, stage.weights)
        if (work.iteration + 1) % self.check_every == 0 or work.iteration == 0:
            self._check_finite(total, parts, work)
        batch.optimizer.zero_grad()
        # Not self.manual_backward: the loss needs no scaler, and the images are no parameters of this module.
        total.backward()
        batch.optimizer.step()
        batch.image.project()
        self._report(total, parts)

        last = work.iteration + 1 == stage.iterations
        if last or (work.iteration + 1) % self.look_every == 0:
            self._look(batch, stage)
        finished = self._finish(batch) if last and work.stage + 1 == len(self.stages) else None
        return {"loss": total.detach(), "finished": finished}

    def current_images(self) -> tuple[Tensor, list[Target]]:
        """The images in work as they are now, (B, 3, H, W) in [0, 1], and their targets."""
        assert self.batch is not None
        assert self.batch.image is not None
        with torch.no_grad():
            return self.batch.image().detach(), self.batch.targets

    def _begin(self, work: Work) -> None:
        """Start the first stage of a batch from noise, a later one from the best images of the stage before."""
        stage = self.stages[work.stage]
        if work.stage == 0:
            first = work.batch * self.batch_size
            count = min(self.batch_size, self.n_images - first)
            generator = torch.Generator(self.device).manual_seed(seed_of("images", self.seed, work.batch))
            draws = torch.Generator().manual_seed(seed_of("layout", self.layout.seed, work.batch))
            targets = self.layout(count, self.teacher.spec.classes, stage.resolution, draws)
            moved: list[Target] = [
                {"boxes": t["boxes"].to(self.device), "labels": t["labels"].to(self.device)} for t in targets
            ]
            self.batch = Batch(work.batch, moved, generator)
            if self._tapped is not None and isinstance(self._tapped.detector, Sampling):
                self._tapped.detector.reseed(seed_of("sampling", self.seed, work.batch))
            image = self.image_factory.noise(count, stage.resolution, generator)
        else:
            assert self.batch is not None
            assert self.batch.best is not None
            before = self.batch.best.shape[-2:]
            self.batch.targets = [_rescaled(t, (before[0], before[1]), stage.resolution) for t in self.batch.targets]
            image = self.image_factory.resume(self.batch.best, stage.resolution)
        self.batch.image = cast(Image, image.to(self.device))
        self.batch.optimizer = stage.optimizer(image.parameters())
        for group in self.batch.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.batch.best, self.batch.best_loss = None, None

    @torch.no_grad()
    def _look(self, batch: Batch, stage: Stage) -> None:
        """Keep, image by image, the iterate of lowest un-augmented loss; without waiting for the device."""
        assert self._tapped is not None
        assert batch.image is not None
        images = batch.image()
        prediction, statistics = self._tapped.forward(images)
        step = Step(images, batch.targets, self._tapped.detector, prediction, clean_images=images, statistics=statistics)
        loss = self.loss.per_image(step, stage.weights)
        if batch.best is None or batch.best_loss is None:
            batch.best, batch.best_loss = images.clone(), loss
            return
        better = loss < batch.best_loss
        batch.best = torch.where(better[:, None, None, None], images, batch.best)
        batch.best_loss = torch.where(better, loss, batch.best_loss)

    def _finish(self, batch: Batch) -> Finished:
        assert batch.best is not None
        assert batch.best_loss is not None
        if not torch.isfinite(batch.best_loss).all():
            raise InputError(
                f"the loss of {int((~torch.isfinite(batch.best_loss)).sum())} images of batch {batch.index} is not finite at the last iteration; "
                "try a smaller learning rate (stages) or weight (loss.<term>.weight)"
            )
        targets: list[Target] = [{"boxes": t["boxes"].cpu(), "labels": t["labels"].cpu()} for t in batch.targets]
        return Finished(batch.index, batch.best.float().cpu(), targets, batch.best_loss.cpu())

    def _report(self, total: Tensor, parts: dict[str, Tensor]) -> None:
        """Log the loss and its parts; the device is waited for only where a logger or the screen writes them."""
        figures = {f"loss/{name}": value.detach() for name, value in parts.items() if "/" not in name}
        self.log_dict(figures, prog_bar=True)
        self.log("loss/total", total.detach())
        start, steps = self._clock
        self._clock = (start, steps + 1)
        per_image = sum(stage.iterations for stage in self.stages)
        rate = (steps + 1) * self.batch_size / per_image / max(time.perf_counter() - start, 1e-9)
        self.log("images/s", rate, prog_bar=True)

    def _check_finite(self, total: Tensor, parts: dict[str, Tensor], work: Work) -> None:
        if torch.isfinite(total):
            return
        culprits = [name for name, value in parts.items() if not torch.isfinite(value)]
        raise InputError(
            f"loss term {culprits[0] if culprits else 'total'} is not finite at iteration {work.iteration} of stage {work.stage}, "
            f"batch {work.batch}; try a smaller learning rate (stages) or weight (loss.<term>.weight)"
        )


def _rescaled(target: Target, before: tuple[int, int], after: tuple[int, int]) -> Target:
    factor = target["boxes"].new_tensor([after[1] / before[1], after[0] / before[0]] * 2)
    return {"boxes": clip_xyxy(target["boxes"] * factor, after), "labels": target["labels"]}
