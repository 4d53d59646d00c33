"""Where folding applies and where it must not; statistics of norms in unusual places. The rule is in tests/test_catalogue.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkd.detectors.folding import TappedDetector, _BatchStatistics
from detkd.detectors.norms import find_norms
from detkd.structures import DetectorSpec, Prediction


class Around(nn.Module):
    """As much of a detector as TappedDetector asks for, around a network of one map."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.spec = net, DetectorSpec(("a",), (16, 16))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, images: Tensor) -> Prediction:
        out = self.net(images)
        flat = out.flatten(2).transpose(1, 2)  # (B, H*W, C)
        return Prediction({"out": flat}, ((*out.shape[-2:], 1),), (1,), {"p0": out}, (16, 16))

    def norms(self) -> Any:
        return find_norms(self)


def check(net: nn.Module, folded: int, **options: Any) -> TappedDetector:
    """The tapped network computes what the plain one does, sees what its hooks see, and sends the same gradient back."""
    plain: Any = Around(net).double().eval()
    tapped = TappedDetector(plain, **options)
    assert tapped.folded == folded
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen: dict[str, list[Tensor]] = {}
    for norm in plain.norms():
        norm.module.register_forward_pre_hook(lambda _, x, n=norm.name: seen.setdefault(n, []).append(x[0]))
    expected = plain(images).raw["out"]
    prediction, observed = tapped.forward(images)
    torch.testing.assert_close(prediction.raw["out"], expected)
    torch.testing.assert_close(tapped(images).raw["out"], expected)
    assert {o.norm.name for o in observed} == set(seen)
    ours, theirs = expected.new_zeros(()), expected.new_zeros(())
    for o in observed:
        x = torch.cat([v.transpose(0, 1).flatten(1) for v in seen[o.norm.name]], 1)  # (C, n)
        torch.testing.assert_close(o.mean.double(), x.mean(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(o.var.double(), x.var(1, correction=0), rtol=1e-4, atol=1e-4)
        ours = ours + o.mean.double().sin().sum() + o.var.double().sqrt().sum()
        theirs = theirs + x.mean(1).sin().sum() + x.var(1, correction=0).sqrt().sum()
    pairs = [
        torch.autograd.grad(t + y.square().mean(), images)[0] for t, y in ((ours, prediction.raw["out"]), (theirs, expected))
    ]
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-3, atol=1e-5)
    return tapped


def conv(a: int, b: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, bias=bias)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_and_its_norm_are_folded(bias: bool, channels_last: bool) -> None:
    net = nn.Sequential(conv(3, 4, bias), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 5), nn.BatchNorm2d(5), nn.SiLU())
    tapped = check(net, folded=2, channels_last=channels_last)
    assert tapped.memory_format is (torch.channels_last if channels_last else torch.contiguous_format)


def test_without_folding_nothing_is_folded() -> None:
    check(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()), folded=0, fold=False)


def test_a_norm_without_a_convolution_is_read_at_its_input() -> None:
    check(nn.Sequential(nn.BatchNorm2d(3), conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4)), folded=0)


class Residual(nn.Module):
    """A block of which the convolution's output is read by the norm and by an addition (pre-activation ResNet)."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.last = conv(3, 4), nn.BatchNorm2d(4), conv(4, 4), nn.BatchNorm2d(4)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:  # as in torchvision's ResNet: what the tap has kept is about to be overwritten
            identity = self.norm(self.first(x))
            out = self.last(self.second(torch.relu(identity)))
            out += identity
            return out
        x = self.first(x)
        return self.last(self.second(torch.relu(self.norm(x)))) + x


def test_a_convolution_with_another_reader_is_not_folded() -> None:
    check(Residual(in_place=False), folded=1)


def test_an_addition_in_place_behind_a_norm() -> None:
    check(Residual(in_place=True), folded=2)


class Shared(nn.Module):
    """One norm behind several convolutions, or one convolution before several norms, or both used twice."""

    def __init__(self, convs: int, norms: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(3, 3) for _ in range(convs))
        self.norms_ = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(norms))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = torch.tanh(self.norms_[i % len(self.norms_)](self.convs[i % len(self.convs)](x)))
        return x


@pytest.mark.parametrize(("convs", "norms", "folded"), [(1, 1, 1), (2, 1, 0), (1, 2, 0), (2, 2, 2)])
def test_shared_layers_pool_their_statistics(convs: int, norms: int, folded: int) -> None:
    check(Shared(convs, norms), folded=folded)


def test_a_norm_with_a_dead_channel_is_not_folded() -> None:
    detector: Any = Around(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4))).eval()
    with torch.no_grad():
        detector.net[1].weight[2] = 0
    tapped = TappedDetector(detector)
    assert tapped.folded == 0
    images = torch.rand(2, 3, 16, 16)
    _, (observed,) = tapped.forward(images)
    x = detector.net[0](images)
    torch.testing.assert_close(observed.mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(observed.var, x.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


class Large(nn.Conv2d):
    """A network that takes no image as small as the probe, as SSD300."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] >= 268
        return super().forward(x)


def test_a_detector_without_norms_is_passed_on() -> None:
    tapped = TappedDetector(Around(Large(3, 2, 1)).eval())  # type: ignore[arg-type]
    prediction, observed = tapped.forward(torch.rand(1, 3, 268, 268))
    assert observed == []
    assert tapped.folded == 0
    assert prediction.raw["out"].shape == (1, 268 * 268, 2)


def test_the_detector_given_stays_as_it_was() -> None:
    detector: Any = Around(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True))).train()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    tapped = TappedDetector(detector)
    tapped.forward(torch.rand(2, 3, 16, 16))
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    assert detector.training
    assert detector.net[2].inplace
    assert all(p.requires_grad for p in detector.parameters())
    assert not any(p.requires_grad for p in tapped.detector.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*detector.modules(), *tapped.detector.modules()])


def test_calls_without_statistics_keep_nothing() -> None:
    tapped = TappedDetector(Around(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4))).eval())  # type: ignore[arg-type]
    tapped(torch.rand(1, 3, 16, 16))
    assert all(not tap.seen and not tap.watched for _, tap, _ in tapped._taps)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 1, 1), (3, 1, 7, 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_statistics(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y, mean, var = _BatchStatistics.apply(x)
    assert torch.equal(y, x)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)).float())
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0).float())
    weights = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(
        (y * weights[0].view(1, -1, 1, 1)).sum() + (mean * weights[1]).sum() + (var * weights[2]).sum(), x
    )[0]
    plain = (x * weights[0].view(1, -1, 1, 1)).sum() + (x.mean((0, 2, 3)) * weights[1]).sum()
    plain = plain + (x.var((0, 2, 3), correction=0) * weights[2]).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(plain, x)[0], rtol=1e-5, atol=1e-6)
