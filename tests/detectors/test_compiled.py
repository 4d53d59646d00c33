"""What is compiled, when, and what happens where the compiler fails. torch.compile itself runs in the slow test."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkd.detectors.compiled import CompiledForward
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
        assert options == {"dynamic": False}

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


def test_only_prepared_shapes_are_compiled_and_only_for_gradients(
    tapped: TappedDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(plain)
    monkeypatch.setattr(torch, "compile", compiler)
    forward = CompiledForward(tapped)
    images = torch.rand(2, 3, 32, 32)
    forward(images)
    assert (compiler.shapes, forward.seconds) == ([], 0.0)
    forward.prepare(images)
    assert forward.seconds > 0
    forward.prepare(images)
    assert compiler.shapes == [(2, 3, 32, 32)]
    forward(images)
    forward(images[:1])
    with torch.no_grad():
        forward(images)
    assert compiler.shapes == [(2, 3, 32, 32)] * 2


@pytest.mark.parametrize(("change", "said"), [(broken, "no compiler here"), (wrong, "its gradient differs")])
def test_a_failure_is_said_once_and_all_goes_on_plain(
    tapped: TappedDetector, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    compiler = Compiler(change)
    monkeypatch.setattr(torch, "compile", compiler)
    forward = CompiledForward(tapped)
    images = torch.rand(2, 3, 32, 32)
    with pytest.warns(RuntimeWarning, match=f"compile: .*TinyDetector.*goes on without it.*{said}") as warned:
        forward.prepare(images)
    assert len(warned) == 1
    assert "second line" not in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward.prepare(images)
        forward.prepare(images[:1])
        prediction, _ = forward(images)
    assert len(compiler.shapes) == 1
    for name, raw in tapped.forward(images)[0].raw.items():
        assert torch.equal(prediction.raw[name], raw)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU: install g++")
def test_the_compiled_pass_is_the_plain_one(tapped: TappedDetector) -> None:
    forward = CompiledForward(tapped)
    images = torch.rand(2, 3, 32, 32)
    forward.prepare(images)
    assert forward.failure is None
    gradients = []
    for run in (forward, tapped.forward):
        pixels = images.clone().requires_grad_()
        prediction, observed = run(pixels)
        total = torch.stack([raw.square().sum() for raw in prediction.raw.values()]).sum()
        total = total + torch.stack([o.mean.square().sum() + o.var.sum() for o in observed]).sum()
        gradients.append(torch.autograd.grad(total, pixels)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
