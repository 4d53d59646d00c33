"""YOLOv3, -SPP and -tiny are the published networks; other families' cfgs build and run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detkd.detectors.darknet.architectures import yolov3_sections, yolov3_tiny_sections
from detkd.detectors.darknet.cfg import Section, parse_cfg
from detkd.detectors.darknet.network import Darknet
from detkd.detectors.darknet.weights import _tensors
from detkd.errors import InputError


def on_paper(sections: list[Section]) -> Darknet:
    with torch.device("meta"):  # shapes alone
        return Darknet(sections)


# name: convolutions, norms, trainable parameters, bytes of the published .weights file (20 of them the header)
PUBLISHED = {
    "yolov3": (yolov3_sections(80), 75, 72, 61_949_149, 248_007_048),
    "yolov3_spp": (yolov3_sections(80, spp=True), 76, 73, None, 252_209_544),
    "yolov3_tiny": (yolov3_tiny_sections(80), 13, 11, 8_852_366, 35_434_956),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    sections, convolutions, norms, parameters, size = PUBLISHED[name]
    net = on_paper(sections)
    assert len(net.conv_blocks()) == convolutions
    assert sum(isinstance(block.norm, nn.BatchNorm2d) for block in net.conv_blocks()) == norms
    assert sum(t.numel() for block in net.conv_blocks() for t in _tensors(block)) * 4 + 20 == size
    if parameters is not None:
        assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("sections", "strides", "anchors"),
    [
        (yolov3_sections(80), [32, 16, 8], [(116, 90), (30, 61), (10, 13)]),
        (yolov3_sections(80, spp=True), [32, 16, 8], [(116, 90), (30, 61), (10, 13)]),
        (yolov3_tiny_sections(80), [32, 16], [(81, 82), (10, 14)]),
    ],
)
def test_heads(sections: list[Section], strides: list[int], anchors: list[tuple[int, int]]) -> None:
    heads = on_paper(sections).yolos
    assert [h.stride for h in heads] == strides
    found = [h.anchors[0] for h in heads]
    assert found == [tuple(map(float, a)) for a in anchors]
    assert all(len(h.anchors) == 3 and h.classes == 80 and h.scale_x_y == 1 for h in heads)


def test_darknet53_is_52_convolutions_and_23_shortcuts() -> None:
    net = on_paper(yolov3_sections(80))
    backbone = list(net.layers)[:75]
    assert sum(type(layer).__name__ == "ConvBlock" for layer in backbone) == 52
    assert sum(type(layer).__name__ == "Shortcut" for layer in backbone) == 23
    assert [s.text("layers") for s in yolov3_sections(80)[1:] if s.kind == "route"] == ["-4", "-1,61", "-4", "-1,36"]


@pytest.mark.parametrize("width", [0.1, 0.25, 0.5, 1.5])
@pytest.mark.parametrize("classes", [1, 7])
def test_any_width_and_number_of_classes(width: float, classes: int) -> None:
    for sections in (yolov3_sections(classes, width=width), yolov3_tiny_sections(classes, width=width)):
        net = on_paper(sections)
        heads = [net.conv_blocks()[-1].conv, *(net.layers[y.layer - 1].conv for y in net.yolos)]
        assert {h.out_channels for h in heads} == {3 * (classes + 5)}
        assert all(block.conv.out_channels % 8 == 0 for block in net.conv_blocks() if block.conv not in heads)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="yolov3: expected 9 anchors, got 2"):
        yolov3_sections(3, anchors=((1, 2), (3, 4)))
    with pytest.raises(InputError, match="yolov3_tiny: expected 6 anchors, got 0"):
        yolov3_tiny_sections(3, anchors=())
    with pytest.raises(InputError, match="yolov3_spp: expected width > 0, got 0"):
        yolov3_sections(3, width=0, spp=True)


def conv(filters: int, size: int = 1, stride: int = 1, activation: str = "mish", groups: int = 1) -> str:
    lines = (
        f"batch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\ngroups={groups}\nactivation={activation}"
    )
    return f"[convolutional]\n{lines}\n"


def head(scale: float, anchors: int = 3) -> str:
    pairs = ",".join(f"{8 * i},{8 * i}" for i in range(1, anchors + 1))
    yolo = f"[yolo]\nmask=0,1,2\nanchors={pairs}\nclasses=2\nnum={anchors}\nscale_x_y={scale}\niou_loss=ciou\nbeta_nms=0.6\n"
    return "[convolutional]\nfilters=21\nsize=1\nactivation=linear\n" + yolo


def csp(filters: int) -> str:
    """A cross-stage block of YOLOv4: two branches, a residual in one, joined."""
    start = conv(filters, 3, 2) + conv(filters // 2) + "[route]\nlayers=-2\n" + conv(filters // 2)
    residual = conv(filters // 2) + conv(filters // 2, 3) + "[shortcut]\nfrom=-3\nactivation=linear\n" + conv(filters // 2)
    return start + residual + "[route]\nlayers=-1,-7\n" + conv(filters)


SPP = "".join(
    f"[maxpool]\nstride=1\nsize={size}\n[route]\nlayers={route}\n"
    for size, route in ((5, "-2"), (9, "-4"), (13, "-1,-3,-5,-6"))
)
YOLOV4 = conv(8, 3) + csp(8) + csp(16) + csp(32) + conv(16, activation="leaky") + SPP + conv(16, activation="leaky")
YOLOV4 += conv(16, activation="leaky") + "[upsample]\nstride=2\n[route]\nlayers=20\n" + conv(16, activation="leaky")
YOLOV4 += "[route]\nlayers=-1,-3\n" + head(1.1) + "[route]\nlayers=-3\n" + conv(16, 3, 2, "leaky") + head(1.05)


def tiny_block(filters: int) -> str:
    """A block of YOLOv4-tiny: half of the channels go around, then all are pooled."""
    inside = conv(filters // 2, 3, activation="leaky") + conv(filters // 2, 3, activation="leaky") + "[route]\nlayers=-1,-2\n"
    after = conv(filters, activation="leaky") + "[route]\nlayers=-6,-1\n[maxpool]\nsize=2\nstride=2\n"
    return conv(filters, 3, activation="leaky") + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + inside + after


YOLOV4_TINY = conv(8, 3, 2, "leaky") + conv(16, 3, 2, "leaky") + tiny_block(16) + tiny_block(32) + head(1.05)


def inverted(channels: int, wide: int, out: int, stride: int) -> str:
    """A block of MobileNet-v2: expand, one filter a channel, project."""
    return conv(wide, activation="relu6") + conv(wide, 3, stride, "relu6", wide) + conv(out, activation="linear")


MOBILENET = conv(8, 3, 2, "relu6") + inverted(8, 16, 8, 1) + "[shortcut]\nfrom=-4\nactivation=linear\n" + inverted(8, 32, 16, 2)
MOBILENET += conv(32, 5, 2, "swish", 16) + "[dropout]\nprobability=.15\n" + head(1.0)


@pytest.mark.parametrize(
    ("body", "strides", "scales"),
    [(YOLOV4, [4, 8], [1.1, 1.05]), (YOLOV4_TINY, [16], [1.05]), (MOBILENET, [8], [1.0])],
    ids=["yolov4", "yolov4_tiny", "mobilenet_yolo"],
)
def test_cfgs_of_other_families_build_and_run(body: str, strides: list[int], scales: list[float]) -> None:
    text = "[net]\nchannels=3\nmosaic=1\nletter_box=1\npolicy=steps\n" + body
    net = Darknet(parse_cfg(text)).eval()
    assert [y.stride for y in net.yolos] == strides
    assert [y.scale_x_y for y in net.yolos] == scales
    images = torch.rand(2, 3, 64, 96, requires_grad=True)
    heads: list[tuple[Any, Any]] = net(images)
    assert [raw.shape for _, raw in heads] == [(2, 21, 64 // s, 96 // s) for s in strides]
    assert all(before.shape[-2:] == raw.shape[-2:] for before, raw in heads)
    (gradient,) = torch.autograd.grad(sum(raw.square().mean() for _, raw in heads), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
