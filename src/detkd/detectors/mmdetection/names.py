"""MMDetection's names of weights, by the names in detkd's detectors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from detkd.errors import InputError

# torchvision's name, and MMDetection's for it
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(ours + r"\.(?P<kind>\w+)"), theirs + r".\g<kind>")
    for ours, theirs in (
        (r"backbone\.body\.(?P<layer>.+)", r"backbone.\g<layer>"),
        (r"backbone\.fpn\.inner_blocks\.(?P<i>\d)\.0", r"neck.lateral_convs.\g<i>.conv"),
        (r"backbone\.fpn\.layer_blocks\.(?P<i>\d)\.0", r"neck.fpn_convs.\g<i>.conv"),
        (r"backbone\.fpn\.extra_blocks\.p6", r"neck.fpn_convs.3.conv"),
        (r"backbone\.fpn\.extra_blocks\.p7", r"neck.fpn_convs.4.conv"),
        (r"rpn\.head\.conv\.0\.0", r"rpn_head.rpn_conv"),
        (r"rpn\.head\.cls_logits", r"rpn_head.rpn_cls"),
        (r"rpn\.head\.bbox_pred", r"rpn_head.rpn_reg"),
        (r"roi_heads\.(?P<stage>(?:\d\.)?)box_head\.fc6", r"roi_head.bbox_head.\g<stage>shared_fcs.0"),
        (r"roi_heads\.(?P<stage>(?:\d\.)?)box_head\.fc7", r"roi_head.bbox_head.\g<stage>shared_fcs.1"),
        (r"roi_heads\.(?P<stage>(?:\d\.)?)box_predictor\.cls_score", r"roi_head.bbox_head.\g<stage>fc_cls"),
        (r"roi_heads\.(?P<stage>(?:\d\.)?)box_predictor\.bbox_pred", r"roi_head.bbox_head.\g<stage>fc_reg"),
        (r"head\.classification_head\.conv\.(?P<i>\d)\.0", r"bbox_head.cls_convs.\g<i>.conv"),
        (r"head\.classification_head\.cls_logits", r"bbox_head.retina_cls"),
        (r"head\.regression_head\.conv\.(?P<i>\d)\.0", r"bbox_head.reg_convs.\g<i>.conv"),
        (r"head\.regression_head\.bbox_reg", r"bbox_head.retina_reg"),
    )
)


def their_name(name: str) -> str:
    """MMDetection's name of a weight of a detector ("model.rpn.head.cls_logits.weight" is "rpn_head.rpn_cls.weight").

    Raises KeyError for a name that it has no word for.
    """
    for pattern, theirs in _RULES:
        if found := pattern.fullmatch(name.removeprefix("model.")):
            return found.expand(theirs)
    raise KeyError(name)


def translate(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], who: str) -> dict[str, Tensor]:
    """The weights of a detector, filled from MMDetection's.

    Args:
        expected: the detector's state dict, for names and shapes. given: by MMDetection's names, background the last class of a softmax.
        who: the file, for messages.

    Background becomes the first row of a RoI head's classes, as here; the box corrections that torchvision keeps for it are zero.
    Raises InputError naming the first weight that is missing, of another shape, or left over.
    """
    state: dict[str, Tensor] = {}
    used = set()
    for name, wanted in expected.items():
        theirs = their_name(name)
        used.add(theirs)
        if theirs not in given:
            if name.endswith("num_batches_tracked"):  # a count that nothing here reads
                state[name] = wanted
                continue
            raise InputError(f"{who}: expected {theirs} {tuple(wanted.shape)}, found no such weight")
        value, shape = given[theirs], tuple(wanted.shape)
        if re.search(r"\.fc_reg\.\w+$", theirs) and shape[0] > 4:
            shape = (shape[0] - 4, *shape[1:])  # those of background are no weights of theirs
        if tuple(value.shape) != shape:
            raise InputError(f"{who}: expected {theirs} {shape}, found {tuple(value.shape)}")
        if re.search(r"\.fc_cls\.\w+$", theirs):
            value = value.roll(1, 0)  # background from the last row to the first
        elif shape != tuple(wanted.shape):
            value = torch.cat([value.new_zeros(4, *shape[1:]), value])
        state[name] = value.to(wanted.dtype)
    if unknown := [name for name in given if name not in used]:
        raise InputError(
            f"{who}: expected the weights of a plain ResNet, FPN and heads, found {len(unknown)} others, the first is {unknown[0]}"
        )
    return state
