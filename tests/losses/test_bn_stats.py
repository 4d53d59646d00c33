from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkd.detectors.folding import TappedDetector
from detkd.detectors.norms import Norm, Observed
from detkd.errors import InputError
from detkd.losses.bn_stats import FORMS, BatchNormStatistics, bn_stats_kl, bn_stats_l2
from detkd.losses.step import Step


def observed(
    channels: int = 5, seed: int = 0, name: str = "bn", eps: float = 1e-5, dtype: torch.dtype = torch.float64
) -> Observed:
    generator = torch.Generator().manual_seed(seed)
    m, mean = torch.randn(2, channels, generator=generator, dtype=dtype)
    s, var = torch.rand(2, channels, generator=generator, dtype=dtype) + 0.5
    norm = Norm(name, nn.BatchNorm2d(channels), m, s, torch.ones(channels), torch.zeros(channels), eps)
    return Observed(norm, mean, var)


def numbers(o: Observed) -> tuple[np.ndarray, ...]:
    return tuple(x.detach().numpy() for x in (o.mean, o.var, o.norm.mean, o.norm.var))


def step(statistics: list[Observed]) -> Step:
    return Step(torch.zeros(1, 3, 8, 8), statistics=statistics)


def test_l2_is_equation_5() -> None:
    o = observed()
    mean, var, m, s = numbers(o)
    expected = np.sqrt(((mean - m) ** 2).sum()) + np.sqrt(((var - s) ** 2).sum())
    assert bn_stats_l2(o).item() == pytest.approx(expected, rel=1e-12)


def test_kl_is_its_formula() -> None:
    o = observed()
    mean, var, m, s = numbers(o)
    s = s + o.norm.eps
    expected = np.mean(((mean - m) ** 2 + var) / s - np.log(var / s) - 1)
    assert bn_stats_kl(o).item() == pytest.approx(expected, rel=1e-6)


def test_kl_by_hand() -> None:
    norm = Norm("bn", nn.BatchNorm2d(1), torch.zeros(1), torch.ones(1), torch.ones(1), torch.zeros(1), 0.0)
    value = bn_stats_kl(Observed(norm, torch.ones(1), torch.full((1,), 2.0)))
    scale = 1 + 1e-5  # a norm without an eps of its own is given one
    assert value.item() == pytest.approx((1 + 2) / scale - math.log(2 / scale) - 1)


def wide() -> Observed:
    """Statistics so wide that the constants do not show."""
    o = observed(eps=0.0)
    return Observed(replace(o.norm, mean=o.norm.mean * 1e3, var=o.norm.var * 1e6), o.mean * 1e3, o.var * 1e6)


def test_kl_is_twice_the_divergence_of_two_gaussians() -> None:
    o = wide()
    batch, stored = (torch.distributions.Normal(m, v.sqrt()) for m, v in ((o.mean, o.var), (o.norm.mean, o.norm.var)))
    assert bn_stats_kl(o).item() == pytest.approx(2 * torch.distributions.kl_divergence(batch, stored).mean().item(), rel=1e-6)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_zero_and_least_where_statistics_agree(form: str) -> None:
    o = observed(eps=0.0)
    assert FORMS[form](replace(o, mean=o.norm.mean, var=o.norm.var)).item() == pytest.approx(0, abs=1e-7)
    assert FORMS[form](o).item() > 0.01


def test_kl_is_the_same_for_every_affine_scaling_of_a_channel_and_l2_is_not() -> None:
    o = wide()
    scale = torch.tensor([0.5, 2.0, 3.0, 10.0, 4.0], dtype=torch.float64)
    norm = replace(o.norm, mean=o.norm.mean * scale + 1, var=o.norm.var * scale**2)
    scaled = Observed(norm, o.mean * scale + 1, o.var * scale**2)
    assert bn_stats_kl(scaled).item() == pytest.approx(bn_stats_kl(o).item(), rel=1e-6)
    assert bn_stats_l2(scaled).item() > 2 * bn_stats_l2(o).item()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_gradient_in_double(form: str) -> None:
    o = observed()

    def value(mean: Tensor, var: Tensor) -> Tensor:
        return FORMS[form](Observed(o.norm, mean, var))

    assert torch.autograd.gradcheck(value, (o.mean.clone().requires_grad_(), o.var.clone().requires_grad_()))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_dead_channel_stays_finite(form: str) -> None:
    o = observed()
    dead = Observed(o.norm, torch.zeros_like(o.mean), torch.zeros_like(o.var).requires_grad_())
    value = FORMS[form](dead)
    value.backward()
    assert torch.isfinite(value)
    assert dead.var.grad is not None
    assert torch.isfinite(dead.var.grad).all()


def test_the_term_sums_its_layers() -> None:
    layers = [observed(seed=i, name=f"bn{i}") for i in range(3)]
    part = BatchNormStatistics("l2")(step(layers))
    assert list(part) == ["bn_stats"]
    assert part["bn_stats"].item() == pytest.approx(sum(bn_stats_l2(o).item() for o in layers))


def test_layers_of_weight_zero_alone_are_refused() -> None:
    term = BatchNormStatistics("kl", {"0": 0.0})
    with pytest.raises(InputError, match="layer_weights"):
        term.setup(None, SimpleNamespace(norms=lambda: [observed().norm]))


def test_layer_weights_by_name_and_by_position() -> None:
    layers = [observed(seed=i, name=f"bn{i}") for i in range(3)]
    values = [bn_stats_kl(o).item() for o in layers]
    term = BatchNormStatistics("kl", {"bn1": 2.0, "2": 0.0})
    term.setup(None, SimpleNamespace(norms=lambda: [o.norm for o in layers]))
    got = term(step(layers))["bn_stats"].item()
    assert got == pytest.approx(values[0] + 2 * values[1])


def test_equals_statistics_taken_by_hand_from_a_detector(tiny_detector: type[nn.Module]) -> None:
    torch.manual_seed(0)
    detector = tiny_detector().eval()
    images = torch.rand(2, 3, 32, 32)
    seen: list[Tensor] = []
    handles = [n.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for n in detector.norms()]
    detector(images)
    for handle in handles:
        handle.remove()
    by_hand = [
        Observed(norm, x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
        for norm, x in zip(detector.norms(), seen, strict=True)
    ]
    _, statistics = TappedDetector(detector).forward(images)
    got = BatchNormStatistics("kl")(Step(images, statistics=statistics))["bn_stats"].item()
    assert got == pytest.approx(sum(bn_stats_kl(o).item() for o in by_hand), rel=1e-4)


def test_a_detector_without_norms_is_an_error_that_says_what_to_do() -> None:
    class Bare(nn.Module):
        def norms(self) -> list[Norm]:
            return []

    with pytest.raises(InputError, match=r"bn_stats.*BatchNorm.*none in Bare"):
        BatchNormStatistics().setup(None, Bare())


def test_unknown_form_and_unknown_layers_are_errors(tiny_detector: type[nn.Module]) -> None:
    with pytest.raises(InputError, match=r"bn_stats\.form.*'kl', 'l2'.*'mse'"):
        BatchNormStatistics("mse")
    with pytest.raises(InputError, match=r"layer_weights.*0 to 2.*'3', 'nope'"):
        BatchNormStatistics(layer_weights={"nope": 1.0, "3": 1.0, "2": 0.5}).setup(None, tiny_detector())
