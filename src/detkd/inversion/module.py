"""The LightningModule that optimises image tensors against a frozen detector.

Source: DIODE (Chawla et al., WACV 2021), section 3. One training step is one optimiser step on the current batch of images.
Images belong to their process alone and are never averaged over processes. A batch is a function of the seed, its index and the
attempt (and of the first batches, where there is a warm start), so any number of processes makes the same set.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, cast

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from detkd.detectors.compiled import CompiledForward, check_choice
from detkd.detectors.folding import TappedDetector
from detkd.detectors.protocol import Detector, Sampling
from detkd.errors import InputError
from detkd.inversion.augment import Augmentation
from detkd.inversion.batch import Batch, Steps
from detkd.inversion.batches import Batches, Finished, MemoryBatches
from detkd.inversion.false_positives import FalsePositives
from detkd.inversion.image import Image, ImageFactory, PixelsFactory, quantise
from detkd.inversion.layout import Layout
from detkd.inversion.quality import Acceptance, Candidate, Judge, choose
from detkd.inversion.stage import Stage, Work, seed_of
from detkd.inversion.warm_start import WarmStart
from detkd.losses.composite import Composite
from detkd.losses.step import Step
from detkd.structures import Target


class InversionModule(lightning.LightningModule):
    """Optimise images until a frozen detector sees the targets in them and its norms see what they remember.

    Args:
        teacher: the detector; frozen and set to eval mode, its weights never change.
        image: makes the parameters of a batch of images.
        loss: terms over a :class:`Step` without a student.
        layout: draws the targets. augmentation: applied to images and targets before every pass.
        stages: one after the other, each from the result of the one before.
        n_images, batch_size: the last batch may be smaller. seed: of everything but the layout.
        sampling: adds to the targets what the teacher sees of itself, in the first stage; None keeps them.
        warm_start: begins later batches from the first; None begins all from noise.
        batches: hands out batches and takes finished ones; by default all, into memory.
        judge, accept: score finished images, and decide which are made again.
        look_every: iterations between looks for the best iterate of each image.
        check_every: iterations between checks for a loss that is not finite.
        fold, channels_last: see :class:`TappedDetector`.
        compile: see :class:`CompiledForward`; a smaller last batch is not compiled.

    The output of a training step is {"work": Work or None, "finished": Finished or None}, with "loss" where there is one.
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
        sampling: FalsePositives | None = None,
        warm_start: WarmStart | None = None,
        batches: Batches | None = None,
        judge: Judge | None = None,
        accept: Acceptance | None = None,
        look_every: int = 25,
        check_every: int = 10,
        fold: bool = True,
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        if n_images < 1 or batch_size < 1:
            raise InputError(f"expected n_images and batch_size of at least 1, got {n_images} and {batch_size}")
        if look_every < 1 or check_every < 1:
            raise InputError(f"expected look_every and log_every of at least 1, got {look_every} and {check_every}")
        check_choice(compile)
        if not stages:
            raise InputError("stages: expected at least one stage, got none")
        if unknown := sorted({name for stage in stages for name in stage.weights} - set(loss.weights)):
            raise InputError(f"stages.weights: expected terms of the loss, {sorted(loss.weights)}, got {unknown}")
        for number, stage in enumerate(stages):
            if isinstance(image, PixelsFactory) and stage.weight_decay:
                raise InputError(
                    f"stages.{number}.optimizer.weight_decay: expected 0 with image=pixels, which it makes black, found {stage.weight_decay}"
                )
        self.judge = Judge(teacher) if judge is None else judge
        self.accept = Acceptance() if accept is None else accept
        if unjudged := sorted(set(self.accept.thresholds()) - set(self.judge.scores)):
            needs = "a verifier" if unjudged[0].startswith("verifier") else "a judge that gives it"
            raise InputError(f"accept.{unjudged[0]}: expected {needs}, found none")
        self.automatic_optimization = False
        self.teacher = teacher
        teacher.eval()
        teacher.requires_grad_(False)
        self.image_factory, self.loss, self.layout, self.augmentation = image, loss, layout, augmentation
        self.stages = list(stages)
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.sampling, self.warm_start = sampling, warm_start
        self.batches: Batches = MemoryBatches(self.n_batches) if batches is None else batches
        self.look_every, self.check_every, self.fold, self.channels_last = look_every, check_every, fold, channels_last
        self.compiling = compile
        self.batch: Batch | None = None
        self.over = False
        self._tapped: TappedDetector | None = None
        self._compiled: CompiledForward | None = None
        self.compile_seconds = 0.0
        self._bank: tuple[Tensor, list[Target]] | None = None
        self._clock = (time.perf_counter(), 0)
        loss.setup(None, teacher)
        if sampling is not None:
            sampling.check(self.stages[0].iterations)
            if warm_start is not None:
                sampling.check(self.stages[0].shortened(warm_start.shorten).iterations)
        layout(
            1, teacher.spec.classes, self.stages[0].resolution, torch.Generator()
        )  # raises where it does not fit the teacher

    @property
    def n_batches(self) -> int:
        return -(-self.n_images // self.batch_size)

    def train_dataloader(self) -> DataLoader[int]:
        """Steps until no batch is left."""
        self.over = False
        return DataLoader(Steps(lambda: self.over), batch_size=None)

    def configure_optimizers(self) -> None:
        """None: every batch and stage has an optimiser of its own."""

    def on_fit_start(self) -> None:
        self._tapped = TappedDetector(self.teacher, self.fold, self.channels_last)
        self._compiled, self.compile_seconds = CompiledForward(self._tapped, self.compiling), 0.0
        self._clock = (time.perf_counter(), 0)

    def on_fit_end(self) -> None:
        self._tapped, self._compiled, self.batch, self._bank = None, None, None, None

    def training_step(self, number: int, _: int) -> dict[str, Any]:
        batch = self.batch or self._claim()
        if batch is None:
            return {"work": None, "finished": None}
        work, stage = batch.work(), batch.stages[batch.stage]
        if batch.iteration == 0:
            self._begin(batch, stage)
        total = self._optimise(batch, stage, work)
        batch.iteration += 1
        if self.sampling is not None and batch.stage == 0 and self.sampling.due(batch.iteration, stage.iterations):
            self._sample(batch, stage, self.sampling)
        last = batch.iteration == stage.iterations
        if last or batch.iteration % self.look_every == 0:
            self._look(batch, stage)
        finished = None
        if last and batch.stage + 1 < len(batch.stages):
            batch.stage, batch.iteration = batch.stage + 1, 0
        elif last:
            finished = self._finish(batch)
        return {"loss": total, "work": work, "finished": finished}

    def current_images(self) -> tuple[Tensor, list[Target]]:
        """The images in work as they are now, (B, 3, H, W) in [0, 1], and their targets."""
        assert self.batch is not None
        assert self.batch.image is not None
        with torch.no_grad():
            return self.batch.image().detach(), self.batch.targets

    def _claim(self) -> Batch | None:
        index = self.batches.claim()
        if index is None:
            self.over = True
            return None
        shorten = 1.0 if self.warm_start is None or index < self.warm_start.batches else self.warm_start.shorten
        self.batch = Batch(index, self.stages if shorten == 1 else [stage.shortened(shorten) for stage in self.stages])
        return self.batch

    def _begin(self, batch: Batch, stage: Stage) -> None:
        """Start the first stage of an attempt from noise or the bank, a later one from the best images of the stage before."""
        if batch.stage == 0:
            image = self._first_image(batch, stage)
        else:
            assert batch.best is not None
            batch.rescale_targets((batch.best.shape[-2], batch.best.shape[-1]), stage.resolution)
            image = self.image_factory.resume(batch.best, stage.resolution)
        batch.image = cast(Image, image.to(self.device))
        batch.optimizer = stage.optimizer(image.parameters())
        for group in batch.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        batch.best, batch.best_loss = None, None

    def _first_image(self, batch: Batch, stage: Stage) -> torch.nn.Module:
        # the first attempt has the seeds that batches had before there were attempts
        key = (batch.index,) if batch.attempt == 0 else (batch.index, batch.attempt)
        count = min(self.batch_size, self.n_images - batch.index * self.batch_size)
        draws = torch.Generator().manual_seed(seed_of("layout", self.layout.seed, *key))
        targets = self.layout(count, self.teacher.spec.classes, stage.resolution, draws)
        batch.targets = [{"boxes": t["boxes"].to(self.device), "labels": t["labels"].to(self.device)} for t in targets]
        batch.objects = [len(t["labels"]) for t in targets]
        if batch.attempt == 0:
            batch.note(None)  # before the first step there is no loss yet
        batch.generator = torch.Generator(self.device).manual_seed(seed_of("images", self.seed, *key))
        if self._tapped is not None and isinstance(self._tapped.detector, Sampling):
            self._tapped.detector.reseed(seed_of("sampling", self.seed, *key))
        if self.warm_start is None or batch.index < self.warm_start.batches:
            return self.image_factory.noise(count, stage.resolution, batch.generator)
        if self._bank is None:
            parts = [self.batches.read(i) for i in range(min(self.warm_start.batches, self.n_batches))]
            self._bank = torch.cat([p[0] for p in parts]).float() / 255, [t for p in parts for t in p[1]]
        draws = torch.Generator().manual_seed(seed_of("warm start", self.seed, *key))
        start = self.warm_start(*self._bank, targets, stage.resolution, draws)
        return self.image_factory.resume(start.to(self.device), stage.resolution)

    def _optimise(self, batch: Batch, stage: Stage, work: Work) -> Tensor:
        tapped = self._tapped
        assert tapped is not None
        assert self._compiled is not None
        assert batch.image is not None
        assert batch.optimizer is not None
        assert batch.generator is not None
        for group in batch.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * stage.lr_factor(work.iteration)
        clean = batch.image()
        images, targets = self.augmentation(clean, batch.targets, batch.generator)
        prediction, statistics = self._compiled(images, self._steps_alike(len(images), stage))
        self.compile_seconds = self._compiled.seconds
        step = Step(images, targets, tapped.detector, prediction, clean_images=clean, statistics=statistics)
        total, parts = self.loss(step, stage.weights)
        if (work.iteration + 1) % self.check_every == 0 or work.iteration == 0:
            _check_finite(total, parts, work)
        batch.optimizer.zero_grad()
        # Not self.manual_backward: the loss needs no scaler, and the images are no parameters of this module.
        total.backward()
        batch.optimizer.step()
        batch.image.project()
        self._report(total, parts)
        return total.detach()

    def _steps_alike(self, count: int, stage: Stage) -> int:
        """How many steps the whole set takes with ``count`` images at this stage; none of a last batch that is smaller than the others."""
        return self.n_images // count * stage.iterations if count == min(self.batch_size, self.n_images) else 0

    @torch.no_grad()
    def _sample(self, batch: Batch, stage: Stage, sampling: FalsePositives) -> None:
        """Let the teacher add to the targets; losses before and after are of other targets, so the best iterate is looked for anew."""
        assert self._tapped is not None
        assert batch.image is not None
        prediction, _ = self._tapped.forward(batch.image())
        targets = sampling(batch.targets, self._tapped.detector.decode(prediction), stage.resolution)
        changed = [
            len(a["labels"]) != len(b["labels"]) or not torch.equal(a["boxes"], b["boxes"])
            for a, b in zip(targets, batch.targets)
        ]
        if any(changed):
            batch.targets = targets
            batch.best, batch.best_loss = None, None

    @torch.no_grad()
    def _look(self, batch: Batch, stage: Stage) -> None:
        """Keep, image by image, the iterate of lowest un-augmented loss; without waiting for the device."""
        assert self._tapped is not None
        assert batch.image is not None
        images = batch.image()
        prediction, statistics = self._tapped.forward(images)
        step = Step(images, batch.targets, self._tapped.detector, prediction, clean_images=images, statistics=statistics)
        loss = self.loss.per_image(step, stage.weights)
        if batch.attempt == 0:
            batch.note(loss.mean())
        if batch.best is None or batch.best_loss is None:
            batch.best, batch.best_loss = images.clone(), loss
            return
        better = (loss < batch.best_loss) | batch.best_loss.isnan()
        batch.best = torch.where(better[:, None, None, None], images, batch.best)
        batch.best_loss = torch.where(better, loss, batch.best_loss)

    def _finish(self, batch: Batch) -> Finished | None:
        """Judge the images of an attempt; None begins another one."""
        assert batch.best is not None
        assert batch.best_loss is not None
        if not torch.isfinite(batch.best_loss).all():
            raise InputError(
                f"the loss of {int((~torch.isfinite(batch.best_loss)).sum())} images of batch {batch.index} is not finite at the last iteration; "
                "try a smaller learning rate (stages) or weight (loss.<term>.weight)"
            )
        images = quantise(batch.best).cpu()
        targets: list[Target] = [{"boxes": t["boxes"].cpu(), "labels": t["labels"].cpu()} for t in batch.targets]
        records = self.judge(images, targets, self.device)
        for record, loss, objects in zip(records, batch.best_loss.tolist(), batch.objects):
            record |= {"loss": round(loss, 4), "objects_start": objects, "attempt": batch.attempt}
            record["accepted"] = self.accept.accepts(record)
        batch.candidates += map(Candidate, images, targets, records)
        batch.attempt, batch.stage, batch.iteration = batch.attempt + 1, 0, 0
        accepted = sum(candidate.record["accepted"] for candidate in batch.candidates)
        if accepted < len(images) and batch.attempt < self.accept.attempts:
            return None
        chosen = choose(batch.candidates, len(images))
        for candidate in chosen:
            candidate.record["attempts"] = batch.attempt
        images, targets, records = (
            torch.stack([c.image for c in chosen]),
            [c.target for c in chosen],
            [c.record for c in chosen],
        )
        finished = Finished(batch.index, images, targets, records, batch.noted())
        self.batch = None
        return finished

    def on_train_batch_end(self, outputs: Any, batch: int, batch_idx: int) -> None:
        """Deliver a finished batch; after the callbacks, so that what they write of it is there before it counts as done."""
        if outputs["finished"] is not None:
            self.batches.deliver(outputs["finished"])

    def _report(self, total: Tensor, parts: dict[str, Tensor]) -> None:
        """Log the loss and its parts; the device is waited for only where a logger or the screen writes them."""
        figures = {f"loss/{name}": value.detach() for name, value in parts.items() if "/" not in name}
        self.log_dict(figures, prog_bar=True)
        self.log("loss/total", total.detach())
        start, steps = self._clock
        self._clock = (start, steps + 1)
        per_image = sum(stage.iterations for stage in self.stages)
        rate = (steps + 1) * self.batch_size / per_image / max(time.perf_counter() - start - self.compile_seconds, 1e-9)
        self.log("images/s", rate, prog_bar=True)


def _check_finite(total: Tensor, parts: dict[str, Tensor], work: Work) -> None:
    if torch.isfinite(total):
        return
    culprits = [name for name, value in parts.items() if not torch.isfinite(value)]
    raise InputError(
        f"loss term {culprits[0] if culprits else 'total'} is not finite at iteration {work.iteration} of stage {work.stage}, "
        f"batch {work.batch}; try a smaller learning rate (stages) or weight (loss.<term>.weight)"
    )
