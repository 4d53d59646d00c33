"""Find the normalisation layers of a network that hold running statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d


@dataclass(frozen=True)
class Norm:
    """One normalisation layer and what it remembers of its training data.

    mean, var: (C,) running statistics of the layer's *input*; weight, bias: (C,) its affine map; eps: its constant.
    """

    name: str
    module: nn.Module
    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class Observed:
    """Statistics of one normalisation over the current batch, on the scale of ``norm.mean`` and ``norm.var``.

    mean, var: (C,) of the layer's input over (N, H, W); var is biased.
    """

    norm: Norm
    mean: Tensor
    var: Tensor


def find_norms(network: nn.Module, skip: tuple[str, ...] = ()) -> list[Norm]:
    """List BatchNorm2d and FrozenBatchNorm2d layers of ``network`` in order of definition.

    Args:
        skip: names of submodules left out with all below them (RoI heads).

    FrozenBatchNorm2d is not a BatchNorm2d but holds the same four tensors. Layers without running statistics are passed over.
    """
    norms = []
    for name, module in network.named_modules():
        if any(name == s or name.startswith(s + ".") for s in skip):
            continue
        if not isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)) or module.running_mean is None:
            continue
        mean, var = module.running_mean, module.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        weight = module.weight if module.weight is not None else torch.ones_like(mean)
        bias = module.bias if module.bias is not None else torch.zeros_like(mean)
        norms.append(Norm(name, module, mean, var, weight.detach(), bias.detach(), float(module.eps)))
    return norms
