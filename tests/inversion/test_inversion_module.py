from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from detkd_tests_inversion_runs import fit, losses, make, same, stage, terms  # put there by conftest.py
from torch import Tensor, nn

from detkd.boxes import clip_xyxy
from detkd.detectors.folding import TappedDetector
from detkd.errors import InputError
from detkd.inversion.augment import Compose
from detkd.inversion.batches import Finished, MemoryBatches
from detkd.inversion.image import ImageFactory, PixelsFactory, PyramidFactory
from detkd.inversion.layout import UniformBoxes
from detkd.inversion.module import InversionModule, quantise
from detkd.inversion.stage import Stage
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.losses.step import Step
from detkd.losses.tv import TotalVariation


def loss_of(module: InversionModule, teacher: Any, finished: Finished, images: Tensor | None = None) -> Tensor:
    """(B,) un-augmented totals on the unfolded teacher, statistics by hooks."""
    images = finished.images.float() / 255 if images is None else images
    tapped = TappedDetector(teacher, fold=False, channels_last=False)
    prediction, statistics = tapped.forward(images)
    step = Step(images, finished.targets, tapped.detector, prediction, clean_images=images, statistics=statistics)
    return module.loss.per_image(step)


def test_makes_every_batch_with_a_smaller_last_one(teacher: Any) -> None:
    kept = fit(make(teacher))
    assert {i: tuple(f.images.shape) for i, f in kept.finished.items()} == {
        0: (2, 3, 32, 32),
        1: (2, 3, 32, 32),
        2: (1, 3, 32, 32),
    }
    for finished in kept.finished.values():
        assert finished.images.dtype == torch.uint8
        assert len(finished.targets) == len(finished.records) == len(finished.images)
        assert [r["accepted"] for r in finished.records] == [True] * len(finished.images)
        assert finished.trace["iterations"] == [0, 2, 4, 6]
        assert finished.trace["objects"] == [1.0] * 4
        assert finished.trace["loss"][0] is None
    assert not torch.equal(kept.finished[0].images, kept.finished[1].images)


@pytest.mark.parametrize("image", [PixelsFactory(0.5, 0.2), PyramidFactory(levels=3)], ids=["pixels", "pyramid"])
def test_the_seed_decides_and_the_global_state_does_not(teacher: Any, image: ImageFactory) -> None:
    torch.manual_seed(1)
    first = fit(make(teacher, image=image)).finished
    torch.manual_seed(2)
    again = fit(make(teacher, image=image)).finished
    assert all(same(first[i], again[i]) for i in first)
    other = fit(make(teacher, image=image, seed=1)).finished
    assert not torch.equal(first[0].images, other[0].images)
    for mine, theirs in zip(first[0].targets, other[0].targets, strict=True):
        assert torch.equal(mine["boxes"], theirs["boxes"])  # the layout has a seed of its own


def test_a_batch_depends_on_seed_and_index_alone(teacher: Any) -> None:
    whole = fit(make(teacher)).finished
    part = fit(make(teacher, batches=Some([2, 1]))).finished
    assert list(part) == [2, 1]
    assert all(same(whole[i], part[i]) for i in part)
    assert fit(make(teacher, batches=Some([]))).finished == {}


class Some(MemoryBatches):
    """These batches, in this order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__(0)
        self.order = list(order)

    def claim(self) -> int | None:
        return self.order.pop(0) if self.order else None


def test_optimising_lowers_the_loss(teacher: Any) -> None:
    module = make(teacher, [stage(iterations=60)], n_images=4, batch_size=4)
    finished = fit(module).finished[0]
    generator = torch.Generator().manual_seed(5)
    noise = PyramidFactory(levels=3).noise(4, (32, 32), generator)()
    with torch.no_grad():
        before, after = loss_of(module, teacher, finished, noise), loss_of(module, teacher, finished)
    assert (after < 0.75 * before).all()


def test_the_loss_reported_is_that_of_the_images_returned(teacher: Any) -> None:
    module = make(
        teacher, [stage(iterations=5)], n_images=2, loss=Composite({"detection": DetectionLoss()}, {"detection": 1.0})
    )
    finished = fit(module).finished[0]
    torch.testing.assert_close(losses(finished), loss_of(module, teacher, finished), rtol=2e-2, atol=2e-2)  # 8 bit


def test_the_best_iterate_of_each_image_is_kept(teacher: Any) -> None:
    # a step size at which the loss jumps about; every iterate is looked at
    wild = Stage((32, 32), 12, partial(torch.optim.SGD, lr=3.0), final_lr=1.0)
    loss = {"loss": Composite({"detection": DetectionLoss()}, {"detection": 1.0}), "image": PixelsFactory(0.5, 0.2)}
    module = make(teacher, [wild], n_images=4, batch_size=4, look_every=1, **loss)
    seen: list[Tensor] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if outputs["work"] is not None and outputs["finished"] is None:
                seen.append(module.current_images()[0].clone())

    finished = fit(module, Watch()).finished[0]
    history = torch.stack([loss_of(module, teacher, finished, images) for images in seen])  # (iterations but the last, B)
    assert len(seen) == 11
    best = torch.stack([quantise(seen[int(i)][k]) for k, i in enumerate(history.argmin(0))])
    earlier = losses(finished) <= history.min(0).values + 1e-3 * history.min(0).values  # or the last iterate is better still
    assert earlier.all()
    kept = (finished.images == best).flatten(1).all(1)
    torch.testing.assert_close(losses(finished)[kept], history.min(0).values[kept], rtol=1e-3, atol=1e-3)
    assert kept.any()  # else the last would do


def test_the_teacher_stays_bit_for_bit_and_gets_no_gradient(teacher: Any) -> None:
    module = make(teacher)
    before = copy.deepcopy(module.teacher.state_dict())
    fit(module)
    after = module.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not module.teacher.training
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())


def test_a_second_stage_goes_on_from_the_best_images_with_rescaled_boxes(teacher: Any) -> None:
    first = fit(make(teacher, [stage(32)], n_images=2)).finished[0]
    still = Stage((64, 48), 1, partial(torch.optim.SGD, lr=0.0))
    second = fit(make(teacher, [stage(32), still], n_images=2)).finished[0]
    resized = PyramidFactory(levels=3).resume(first.images.float() / 255, (64, 48))().detach()
    assert second.images.shape == (2, 3, 64, 48)
    assert (second.images.float() - quantise(resized).float()).abs().max() <= 2  # the stage before was not rounded to 8 bit
    for small, large in zip(first.targets, second.targets, strict=True):
        expected = clip_xyxy(small["boxes"] * torch.tensor([1.5, 2, 1.5, 2]), (64, 48))
        torch.testing.assert_close(large["boxes"], expected)
        assert torch.equal(small["labels"], large["labels"])


def test_a_stage_can_change_the_weights_of_terms(teacher: Any) -> None:
    def total(**weights: float) -> float:
        return fit(make(teacher, [stage(iterations=1, weights=weights)], n_images=2)).losses[0]

    alone = {
        name: total(**{n: float(n == name) for n in ("detection", "bn_stats", "tv")})
        for name in ("detection", "bn_stats", "tv")
    }
    assert total() == pytest.approx(alone["detection"] + alone["bn_stats"] + 0.1 * alone["tv"], rel=1e-5)
    assert total(bn_stats=3.0) == pytest.approx(total() + 2 * alone["bn_stats"], rel=1e-5)


class Broken(nn.Module):
    """NaN at its third call."""

    pools_batch = True

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def setup(self, student: Any, teacher: Any) -> None:
        """Needs nothing."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        self.calls += torch.is_grad_enabled()
        return {"broken": step.images.mean() * (float("nan") if self.calls == 3 else 1.0)}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_and_iteration(teacher: Any) -> None:
    loss = Composite({"tv": TotalVariation(), "broken": Broken()}, {"tv": 1.0, "broken": 1.0})
    with pytest.raises(InputError, match=r"term broken is not finite at iteration 2 of stage 0, batch 0"):
        fit(make(teacher, loss=loss))


def test_an_image_that_recovers_from_a_loss_that_was_not_finite_is_kept(teacher: Any) -> None:
    class Late(Broken):
        pools_batch = False

        def forward(self, step: Step) -> dict[str, Tensor]:
            self.calls += not torch.is_grad_enabled()  # only looks are counted: one an image
            return {
                "broken": step.images.mean() * (float("nan") if self.calls in (1, 2) and not torch.is_grad_enabled() else 1.0)
            }

    loss = Composite({"broken": Late()}, {"broken": 1.0})
    finished = fit(make(teacher, loss=loss, n_images=2)).finished[0]
    assert torch.isfinite(losses(finished)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_images": 0}, "n_images"), ({"batch_size": 0}, "batch_size")],
)
def test_impossible_sizes_are_errors(teacher: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(teacher, **options)


def test_stage_weights_of_unknown_terms_are_errors(teacher: Any) -> None:
    with pytest.raises(InputError, match=r"stages\.weights: expected terms of the loss.*got \['tvv'\]"):
        make(teacher, [stage(weights={"tvv": 1.0})])


def test_no_stage_is_an_error(teacher: Any) -> None:
    with pytest.raises(InputError, match="at least one stage"):
        InversionModule(teacher, PixelsFactory(), terms(), UniformBoxes(), Compose([]), [], n_images=1, batch_size=1)


def test_terms_are_checked_when_the_module_is_made(teacher: Any) -> None:
    teacher.norms = list
    with pytest.raises(InputError, match="bn_stats"):
        InversionModule(teacher, PixelsFactory(), terms(), UniformBoxes(), Compose([]), [stage()], n_images=1, batch_size=1)


@pytest.mark.parametrize(
    ("compile", "threshold", "shapes"),
    [
        (True, 4000, {(2, 32)}),  # the last batch, of one image, is not worth the compiler
        (False, 1, set()),
        ("auto", 12, {(2, 32)}),  # 2 batches of 6 steps
        ("auto", 13, set()),
    ],
)
def test_what_is_compiled_follows_from_the_settings(
    teacher: Any, monkeypatch: pytest.MonkeyPatch, compile: Any, threshold: int, shapes: set[tuple[int, int]]
) -> None:
    seen = set()

    def compiler(forward: Any, **_: Any) -> Any:
        def run(images: Tensor) -> Any:
            seen.add((len(images), images.shape[-1]))
            return forward(images)

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr("detkd.detectors.compiled.COMPILE_STEPS", threshold)
    module = make(teacher, compile=compile)
    finished = fit(module).finished
    assert seen == shapes
    assert (module.compile_seconds > 0) == bool(shapes)
    plain = fit(make(teacher, compile=False)).finished
    assert all(same(finished[i], plain[i]) for i in plain)


def test_a_compiler_that_fails_changes_nothing(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(forward: Any, **_: Any) -> Any:
        def run(images: Tensor) -> Any:
            raise OSError("no g++")

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    finished = fit(make(teacher, compile=True)).finished
    plain = fit(make(teacher, compile=False)).finished
    assert all(same(finished[i], plain[i]) for i in plain)


@pytest.mark.parametrize("wrong", ["yes", None, 1])
def test_compile_is_yes_no_or_auto(teacher: Any, wrong: Any) -> None:
    with pytest.raises(InputError, match="compile: expected auto, true or false, found"):
        make(teacher, compile=wrong)
