"""The two towers that RetinaNet and FCOS run on every level of their pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkd.detectors.torchvision.base import pick_maps
from detkd.structures import Prediction

Layers = dict[str, dict[str, Tensor]]  # number of the layer, from "1", then level
Towers = dict[str, Layers]  # "cls" and "box"
Maps = tuple[list[Tensor], list[Tensor]]


def layers_of(tower: Any) -> list[nn.Sequential]:
    """A tower of torchvision's, cut behind each activation: a convolution with its norm and activation is a layer.

    RetinaNet nests each layer in a module of its own, FCOS does not.
    """
    layers: list[list[nn.Module]] = [[]]
    for module in tower:
        layers[-1].append(module)
        if not isinstance(module, nn.Conv2d | nn.GroupNorm):
            layers.append([])
    return [nn.Sequential(*layer) for layer in layers if layer]


def run_towers(head: Any, maps: Sequence[Tensor], names: Sequence[str]) -> Towers:
    """All layers of both towers, on maps (B, C, H, W) by level name; ``head`` is torchvision's."""
    towers: Towers = {}
    for branch, tower in (("cls", head.classification_head.conv), ("box", head.regression_head.conv)):
        of_layer, towers[branch] = dict(zip(names, maps)), {}
        for number, layer in enumerate(layers_of(tower), start=1):
            of_layer = {name: layer(m) for name, m in of_layer.items()}
            towers[branch][str(number)] = of_layer
    return towers


def finish_towers(head: Any, cls: Sequence[Tensor], box: Sequence[Tensor], layer: int) -> Maps:
    """Last layers of both towers, one map a level, from their maps behind ``layer``."""
    pairs = ((cls, head.classification_head.conv), (box, head.regression_head.conv))
    first, second = ([nn.Sequential(*layers_of(tower)[layer:])(m) for m in maps] for maps, tower in pairs)
    return first, second


def kept(towers: Towers) -> dict[str, Towers]:
    """What of the towers goes into ``Prediction.state``: all where the graph holds them anyway, else nothing, to save memory."""
    return {"towers": towers} if torch.is_grad_enabled() else {}


def behind(towers: Mapping[str, Layers], layer: int | None = None) -> Maps:
    """Classification and box maps behind a layer of the towers, counted from 1, one a level; None for the last.

    Raises ValueError for a layer that there is not.
    """
    number = len(towers["cls"]) if layer is None else layer
    if not 1 <= number <= len(towers["cls"]):
        raise ValueError(f"expected a layer of the towers from 1 to {len(towers['cls'])}, got {layer}")
    return list(towers["cls"][str(number)].values()), list(towers["box"][str(number)].values())


def towers_of(head: Any, prediction: Prediction, names: Sequence[str], layer: int | None = None) -> Maps:
    """As :func:`behind`, of a prediction; the towers run again where the prediction did not keep them."""
    towers: Towers | None = prediction.state.get("towers")
    if towers is None:
        towers = run_towers(head, pick_maps(prediction.features, names), names)
    return behind(towers, layer)
