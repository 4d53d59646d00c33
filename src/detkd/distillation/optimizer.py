"""Which parameters an optimiser gets, and which of them decay."""

from __future__ import annotations

from typing import Any

from torch import nn

_DECAYED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def parameter_groups(*modules: nn.Module) -> list[dict[str, Any]]:
    """Split the trainable parameters of ``modules``: weights of convolutions and linear layers, then all others.

    The second group has weight decay 0 (norms, biases, scales); the first takes the decay that the optimiser was made with. A group without
    parameters is left out; a shared parameter comes once, in the first group if any of its owners is a convolution or linear.
    """
    decayed: dict[int, nn.Parameter] = {}
    others: dict[int, nn.Parameter] = {}
    for module in (m for root in modules for m in root.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                group = decayed if name == "weight" and isinstance(module, _DECAYED) else others
                group[id(parameter)] = parameter
    rest = [parameter for key, parameter in others.items() if key not in decayed]
    groups: list[dict[str, Any]] = [{"params": list(decayed.values())}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
