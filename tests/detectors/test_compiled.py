"""What is compiled, when, and what happens where the compiler fails. torch.compile itself runs in the slow test."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkd.detectors.compiled import COMPILE_STEPS, CompiledForward
from detkd.detectors.folding import TappedDetector

Forward = Callable[[Tensor], Any]


@pytest.fixture
def tapped(tiny_detector: type[nn.Module]) -> TappedDetector:
    torch.manual_seed(0)
    return TappedDetector(tiny_detector(image_size=(32, 32)))  # type: ignore[arg-type]


class Compiler:
    """Stands in for torch.compile: counts the passes, and does to them what it is told."""

    def __init__(self, change: Callable[[Forward, Tensor], Any]) -> None:
        self.change, self.shapes = change, list[tuple[int, ...]]()

    def __call__(self, forward: Forward, **options: Any) -> Forward:
        assert options == {"dynamic": False, "options": {"layout_optimization": False}}

        def run(images: Tensor) -> Any:
            self.shapes.append(tuple(images.shape))
            return self.change(forward, images)

        return run


def plain(forward: Forward, images: Tensor) -> Any:
    return forward(images)


def broken(forward: Forward, images: Tensor) -> Any:
    raise RuntimeError("no compiler here\nand a second line")


def wrong(forward: Forward, images: Tensor) -> Any:
    return forward(images * 1.5)


@pytest.mark.parametrize(
    ("choice", "steps", "compiled"),
    [
        (True, 1, True),
        (True, 0, False),
        (False, 10**6, False),
        ("auto", COMPILE_STEPS, True),
        ("auto", COMPILE_STEPS - 1, False),
    ],
)
def test_what_is_compiled(
    tapped: TappedDetector, monkeypatch: pytest.MonkeyPatch, choice: Any, steps: int, compiled: bool
) -> None:
    compiler = Compiler(plain)
    monkeypatch.setattr(torch, "compile", compiler)
    forward = CompiledForward(tapped, choice)
    images = torch.rand(2, 3, 32, 32)
    forward(images, steps)
    assert compiler.shapes == [(2, 3, 32, 32)] * (2 if compiled else 0)  # once to check it, once to use it
    assert (forward.seconds > 0) == compiled
    forward(images, steps)
    forward(images[:1], 0)
    assert compiler.shapes == [(2, 3, 32, 32)] * (3 if compiled else 0)


@pytest.mark.parametrize(("change", "said"), [(broken, "no compiler here"), (wrong, "its gradient differs")])
def test_a_failure_is_said_once_and_all_goes_on_plain(
    tapped: TappedDetector, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    compiler = Compiler(change)
    monkeypatch.setattr(torch, "compile", compiler)
    forward = CompiledForward(tapped, True)
    images = torch.rand(2, 3, 32, 32)
    with pytest.warns(RuntimeWarning, match=f"compile: .*TinyDetector.*goes on without it.*{said}") as warned:
        prediction, _ = forward(images, 1)
    assert len(warned) == 1
    assert "second line" not in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward(images[:1], 1)
        again, _ = forward(images, 1)
    assert len(compiler.shapes) == 1
    for name, raw in tapped.forward(images)[0].raw.items():
        assert torch.equal(prediction.raw[name], raw)
        assert torch.equal(again.raw[name], raw)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU: install g++")
def test_the_compiled_pass_is_the_plain_one(tapped: TappedDetector) -> None:
    forward = CompiledForward(tapped, True)
    images = torch.rand(2, 3, 32, 32)
    gradients = []
    for run in (lambda pixels: forward(pixels, 1), tapped.forward):
        pixels = images.clone().requires_grad_()
        prediction, observed = run(pixels)
        assert forward.failure is None
        total = torch.stack([raw.square().sum() for raw in prediction.raw.values()]).sum()
        total = total + torch.stack([o.mean.square().sum() + o.var.sum() for o in observed]).sum()
        gradients.append(torch.autograd.grad(total, pixels)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
