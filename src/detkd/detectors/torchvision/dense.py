"""The two towers that RetinaNet and FCOS run on every level of their pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkd.detectors.torchvision.base import pick_maps
from detkd.structures import Prediction

Towers = dict[str, dict[str, Tensor]]


def run_towers(head: Any, maps: Sequence[Tensor], names: Sequence[str]) -> Towers:
    """Last layers of both towers, {cls, box} of maps (B, C, H, W) by level name; ``head`` is torchvision's."""
    cls, box = head.classification_head.conv, head.regression_head.conv
    return {"cls": {n: cls(m) for n, m in zip(names, maps)}, "box": {n: box(m) for n, m in zip(names, maps)}}


def kept(towers: Towers) -> dict[str, Towers]:
    """What of the towers goes into ``Prediction.state``: all where the graph holds them anyway, else nothing, to save memory."""
    return {"towers": towers} if torch.is_grad_enabled() else {}


def towers_of(head: Any, prediction: Prediction, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Classification and box towers of a prediction, one map a level; run again where the prediction did not keep them."""
    towers: Towers | None = prediction.state.get("towers")
    if towers is None:
        towers = run_towers(head, pick_maps(prediction.features, names), names)
    return list(towers["cls"].values()), list(towers["box"].values())
