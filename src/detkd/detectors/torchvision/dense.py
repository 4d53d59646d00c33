"""What RetinaNet and FCOS share: two towers that run on every level of a pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detkd.detectors.torchvision.backbones import pyramid
from detkd.detectors.torchvision.base import flatten_levels, level_names, level_sizes, pick_maps, size_of
from detkd.detectors.torchvision.detector import TorchvisionDetector
from detkd.structures import Detection, Prediction

STRIDES = (8, 16, 32, 64, 128)
_STAGES, _MAPS = level_names("c", STRIDES[:3]), level_names("p", STRIDES)

Layers = dict[str, dict[str, Tensor]]  # number of the layer, from "1", then level
Towers = dict[str, Layers]  # "cls" and "box"
Maps = tuple[list[Tensor], list[Tensor]]


class DenseDetector(TorchvisionDetector):
    """The part of a :class:`~detkd.detectors.protocol.DenseHead` that does not depend on the family.

    Features are backbone stages c3 to c5 and pyramid maps p3 to p7. ``model`` has torchvision's ``backbone`` and a ``head`` of
    ``classification_head`` and ``regression_head``, each with its tower in ``conv``.
    """

    def forward(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) RGB images in [0, 1] to a Prediction."""
        stages, maps = pyramid(self.model.backbone, self.normalise(images))
        return self.head(dict(zip(_STAGES, stages.values())) | dict(zip(_MAPS, maps.values())), size_of(images))

    def head(self, features: Mapping[str, Tensor], image_size: tuple[int, int]) -> Prediction:
        """Both towers and their predictions on the maps p3 to p7 (B, channels, H, W); other features are passed on.

        Raises ValueError naming the maps that are missing.
        """
        towers = run_towers(self.model.head, pick_maps(features, _MAPS))
        prediction = self._predict(*behind(towers), image_size)
        return replace(prediction, features=dict(features), state=kept(towers) | prediction.state)

    def head_from(self, cls: Sequence[Tensor], box: Sequence[Tensor], layer: int, image_size: tuple[int, int]) -> Prediction:
        """The rest of the head on what :meth:`towers` gives behind ``layer``; the prediction has no features."""
        return self._predict(*finish_towers(self.model.head, cls, box, layer), image_size)

    @property
    def tower_layers(self) -> int:
        """How many layers each tower has before what predicts: 4."""
        return len(layers_of(self.model.head.classification_head.conv))

    def towers(self, prediction: Prediction, layer: int | None = None) -> Maps:
        """Classification and box maps (B, channels, H, W) a level: the towers after the ReLU of a layer, by default the last.

        They run again where the prediction did not keep them. Raises ValueError for a layer that there is not.
        """
        kept_towers: Towers | None = prediction.state.get("towers")
        return behind(kept_towers or run_towers(self.model.head, pick_maps(prediction.features, _MAPS)), layer)

    @torch.no_grad()
    def decode(self, prediction: Prediction) -> list[Detection]:
        """Detections as torchvision's own, one an image; of a 91-column head those of the 80 classes."""
        output, anchors = self._head_output(prediction)
        count, lengths = len(prediction), [h * w * a for h, w, a in prediction.sizes]
        levels = {name: list(torch.split(values, lengths, dim=1)) for name, values in output.items()}
        anchor_levels = [list(torch.split(anchors, lengths))] * count
        found = self.model.postprocess_detections(levels, anchor_levels, [prediction.image_size] * count)
        return [self.labels.to_detection(f) for f in found]

    def _predict(self, cls: Sequence[Tensor], box: Sequence[Tensor], image_size: tuple[int, int]) -> Prediction:
        """What the last layers of the towers predict."""
        sites = self.model.anchor_generator.num_anchors_per_location()
        logits = flatten_levels([self.model.head.classification_head.cls_logits(m) for m in cls], sites, self.labels.width)
        return Prediction(
            raw={"cls": self.labels.select(logits), **self._regress(box, sites)},
            sizes=level_sizes(cls, sites),
            strides=STRIDES,
            features={},
            image_size=image_size,
            state={} if self.labels.complete else {"logits": logits},
        )

    def _regress(self, box: Sequence[Tensor], sites: Sequence[int]) -> dict[str, Tensor]:
        """What a box tower's maps behind its last layer predict, (B, N, ...) by its name in ``Prediction.raw``; sites: a cell, by level."""
        heads = self.model.head.regression_head
        return {"box": flatten_levels([heads.bbox_reg(m) for m in box], sites, 4)}


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


def run_towers(head: Any, maps: Sequence[Tensor]) -> Towers:
    """All layers of both towers, on the maps p3 to p7 (B, C, H, W); ``head`` is torchvision's."""
    towers: Towers = {}
    for branch, tower in (("cls", head.classification_head.conv), ("box", head.regression_head.conv)):
        of_layer, towers[branch] = dict(zip(_MAPS, maps)), {}
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
