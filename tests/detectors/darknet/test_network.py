"""Every layer kind of the darknet network against references written from darknet's definitions, one value at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detkd.detectors.darknet.cfg import parse_cfg
from detkd.detectors.darknet.network import ACTIVATIONS, ConvBlock, Darknet, MaxPool, Route, Shortcut
from detkd.errors import InputError

HEAD = "[convolutional]\nfilters=6\nactivation=linear\n[yolo]\nanchors=4,4\nclasses=1\nnum=1\n"


def network(body: str, channels: int = 3) -> Darknet:
    return Darknet(parse_cfg(f"[net]\nchannels={channels}\n{body}\n{HEAD}", "x.cfg")).eval()


def run(body: str, x: Tensor) -> Tensor:
    """The output of ``body``: what the convolution before the [yolo] layer reads."""
    with torch.no_grad():
        ((before, _),) = network(body, x.shape[1])(x)
    return before


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pooled(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """darknet's forward_maxpool_layer: windows start at -padding // 2, pixels outside count for nothing."""
    height, width = x.shape[-2:]
    rows, columns = (height + padding - size) // stride + 1, (width + padding - size) // stride + 1
    out = torch.empty(*x.shape[:2], rows, columns)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride - padding // 2, j * stride - padding // 2
            window = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
            out[:, :, i, j] = window.amax((2, 3))
    return out


@pytest.mark.parametrize("side", [(6, 6), (7, 6), (6, 9), (7, 7), (13, 13)])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (2, 1), (3, 1), (3, 2), (5, 1), (9, 1), (13, 1), (4, 2), (1, 1)])
def test_maxpool_pads_as_darknet_does(size: int, stride: int, side: tuple[int, int]) -> None:
    x = rand(2, 3, *side) - 5  # all negative: padding with 0 would show
    expected = pooled(x, size, stride, size - 1)
    assert torch.equal(run(f"[maxpool]\nsize={size}\nstride={stride}", x), expected)


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_maxpool_with_a_padding_of_its_own(padding: int) -> None:
    x = rand(1, 2, 8, 7) - 5
    assert torch.equal(run(f"[maxpool]\nsize=4\nstride=2\npadding={padding}", x), pooled(x, 4, 2, padding))
    assert torch.equal(MaxPool(4, 3, padding)(x), pooled(x, 4, 3, padding))


def test_maxpool_of_size_2_stride_1_keeps_the_size() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert run("[maxpool]\nsize=2\nstride=1", x)[0, 0].tolist() == [[4, 5, 5], [7, 8, 8], [7, 8, 8]]


def test_spatial_pyramid_pooling() -> None:
    body = "[maxpool]\nsize=5\nstride=1\n[route]\nlayers=-2\n[maxpool]\nsize=9\nstride=1\n[route]\nlayers=-4\n"
    body = "[dropout]\n" + body + "[maxpool]\nsize=13\nstride=1\n[route]\nlayers=-1,-3,-5,-6"
    x = rand(1, 2, 13, 10)
    expected = torch.cat([pooled(x, 13, 1, 12), pooled(x, 9, 1, 8), pooled(x, 5, 1, 4), x], dim=1)
    assert torch.equal(run(body, x), expected)


REFERENCES = {
    "linear": lambda v: v,
    "leaky": lambda v: v if v > 0 else 0.1 * v,
    "relu": lambda v: max(v, 0.0),
    "relu6": lambda v: min(max(v, 0.0), 6.0),
    "mish": lambda v: v * math.tanh(math.log1p(math.exp(v))),
    "swish": lambda v: v / (1 + math.exp(-v)),
    "logistic": lambda v: 1 / (1 + math.exp(-v)),
}


def test_every_activation_has_a_reference() -> None:
    assert set(REFERENCES) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    values = torch.linspace(-9, 9, 61)
    expected = torch.tensor([REFERENCES[name](v) for v in values.tolist()])
    torch.testing.assert_close(ACTIVATIONS[name]()(values), expected, rtol=1e-5, atol=1e-6)


def convolved(x: Tensor, kernel: Tensor, stride: int, padding: int, groups: int, dilation: int = 1) -> Tensor:
    """A convolution as a loop over outputs, (B, C, H, W)."""
    size, each, per = kernel.shape[-1], kernel.shape[1], kernel.shape[0] // groups
    padded = torch.nn.functional.pad(x, [padding] * 4)
    reach = dilation * (size - 1) + 1
    rows, columns = ((side - reach) // stride + 1 for side in padded.shape[-2:])
    out = torch.empty(len(x), len(kernel), rows, columns)
    for f in range(len(kernel)):
        source = padded[:, f // per * each : f // per * each + each]
        for i in range(rows):
            for j in range(columns):
                top, left = i * stride, j * stride
                window = source[:, :, top : top + reach : dilation, left : left + reach : dilation]
                out[:, f, i, j] = (window * kernel[f]).sum((1, 2, 3))
    return out


@pytest.mark.parametrize(
    ("options", "stride", "padding", "groups", "dilation", "size"),
    [
        ("size=3\nstride=1\npad=1", 1, 1, 1, 1, 3),
        ("size=3\nstride=2\npad=1\ngroups=2", 2, 1, 2, 1, 3),
        ("size=5\nstride=1\npad=1\ngroups=4", 1, 2, 4, 1, 5),
        ("size=3\nstride=1\npad=0", 1, 0, 1, 1, 3),
        ("size=3\nstride=1\npadding=2", 1, 2, 1, 1, 3),
        ("size=3\npad=1\ndilation=2", 1, 2, 1, 2, 3),
        ("size=1\nstride=1\npad=1", 1, 0, 1, 1, 1),
        ("size=2\nstride_x=2\nstride_y=2", 2, 0, 1, 1, 2),
    ],
)
def test_convolution_with_batch_norm(options: str, stride: int, padding: int, groups: int, dilation: int, size: int) -> None:
    x = rand(2, 4, 9, 8)
    net = network(f"[convolutional]\nfilters=8\nbatch_normalize=1\nactivation=leaky\n{options}", 4)
    block = net.conv_blocks()[0]
    norm: Any = block.norm
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    y = convolved(x, block.conv.weight.detach(), stride, padding, groups, dilation)
    assert block.conv.weight.shape == (8, 4 // groups, size, size)
    gamma, beta, mean, var = (
        t.detach().view(1, -1, 1, 1) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    y = gamma * (y - mean) / (var + 1e-5).sqrt() + beta
    with torch.no_grad():
        ((found, _),) = net(x)
    torch.testing.assert_close(found, torch.where(y > 0, y, 0.1 * y), rtol=1e-4, atol=1e-5)


def test_convolution_without_norm_has_a_bias() -> None:
    (block, _) = network("[convolutional]\nfilters=2\nactivation=linear").conv_blocks()
    assert isinstance(block, ConvBlock)
    assert block.conv.bias is not None
    assert isinstance(block.norm, torch.nn.Identity)


def test_route_takes_a_group_of_each() -> None:
    x = rand(1, 4, 3, 3)
    assert torch.equal(run("[dropout]\n[route]\nlayers=-1\ngroups=2\ngroup_id=1", x), x[:, 2:])
    both = run("[dropout]\n[maxpool]\nsize=3\nstride=1\n[route]\nlayers=-1,0\ngroups=2\ngroup_id=0", x)
    assert torch.equal(both, torch.cat([pooled(x, 3, 1, 2)[:, :2], x[:, :2]], 1))
    assert torch.equal(Route([0, 1], 1, 0)([x, 2 * x]), torch.cat([x, 2 * x], 1))


def test_shortcut_adds_several_and_activates() -> None:
    x = rand(1, 2, 4, 4)
    pools = "[dropout]\n[maxpool]\nsize=3\nstride=1\n[maxpool]\nsize=3\nstride=1\n"
    once = pooled(x, 3, 1, 2)
    total = pooled(once, 3, 1, 2) + once + x
    assert torch.equal(run(f"{pools}[shortcut]\nfrom=-2,-3\nactivation=linear", x), total)
    assert torch.equal(run(f"{pools}[shortcut]\nfrom=1,0\nactivation=relu", x), total.clamp(min=0))
    assert torch.equal(Shortcut([0], torch.nn.Identity())(x, [x]), 2 * x)


@pytest.mark.parametrize("factor", [2, 3])
def test_upsample_repeats_pixels(factor: int) -> None:
    small = rand(1, 2, 3, 4)
    rows, columns = [i // factor for i in range(3 * factor)], [j // factor for j in range(4 * factor)]
    large = small[:, :, rows][:, :, :, columns]
    # a [yolo] layer finer than the image is refused, so the map is made coarse first
    assert torch.equal(run(f"[maxpool]\nsize={factor}\nstride={factor}\npadding=0\n[upsample]\nstride={factor}", large), large)
    assert torch.equal(
        network(f"[maxpool]\nsize=1\nstride={2 * factor}\n[upsample]\nstride={factor}", 2).layers[1](small), large
    )


def test_dropout_does_nothing_in_eval_mode_and_something_in_training() -> None:
    x = torch.ones(1, 2, 16, 16)
    assert torch.equal(run("[dropout]\nprobability=.5", x), x)
    ((dropped, _),) = network("[dropout]\nprobability=.5", 2).train()(x)
    assert set(dropped.unique().tolist()) == {0, 2}


CONV = "[convolutional]\nfilters=4\nactivation=linear\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[crnn]\n", r"x.cfg, line 3 \[crnn\]: expected a layer of .*'convolutional'.*found \[crnn\]"),
        (
            CONV + "[route]\nlayers=-2",
            r"line 6 \[route\]: expected layers to name layers from 0 to 0 \(or -1 to -1\), found \[-2\]",
        ),
        (CONV + "[route]\nlayers=1", r"line 6 \[route\].*found \[1\]"),
        ("[route]\nlayers=-1", r"line 3 \[route\]"),
        (CONV + "[route]\nlayers=", "to name layers"),
        (CONV + "[shortcut]\nfrom=-4", r"line 6 \[shortcut\]: expected from to name layers"),
        (CONV + "[route]\nlayers=-1\ngroups=3", "expected groups to divide the 4 channels of layer 0, found 3"),
        (CONV + "[route]\nlayers=-1\ngroups=2\ngroup_id=2", "expected group_id under groups=2, found 2"),
        (CONV + "[maxpool]\nsize=2\nstride=2\n[route]\nlayers=0,1", "expected layers of one stride"),
        (CONV + CONV.replace("4", "5") + "[shortcut]\nfrom=-2", "expected layer 0 to have the 5 channels"),
        ("[convolutional]\nfilters=4\ngroups=2", "expected groups to divide 3 inputs and 4 filters, found 2"),
        ("[convolutional]\nsize=3", "expected a line filters=..., found none"),
        ("[convolutional]\nfilters=0", "expected filters from 1"),
        ("[convolutional]\nfilters=4\nactivation=gelu", "expected an activation of .*'mish'.*found 'gelu'"),
        ("[convolutional]\nfilters=4\nstride_x=1\nstride_y=2", "expected stride_x = stride_y"),
        ("[convolutional]\nfilters=4\nxnor=1", "expected no xnor"),
        ("[shortcut]\nfrom=-1", r"line 3 \[shortcut\]"),
        (CONV + "[shortcut]\nfrom=-1\nweights_type=per_channel", "expected no weights_type"),
        ("[dropout]\nprobability=1", r"expected probability in \[0, 1\), found 1"),
        ("[upsample]\nscale=2", "expected scale=1"),
        ("[yolo]\nanchors=4,4\nclasses=1\nnum=1", r"expected a \[convolutional\] layer right above"),
        (
            CONV + "[yolo]\nanchors=4,4\nclasses=2\nnum=1",
            r"line 6 \[yolo\]: expected filters=7 above, for 1 anchors and classes=2.*filters=4",
        ),
        (CONV + "[yolo]\nanchors=4,4,8\nnum=2", "expected 4 positive anchor sides"),
        (CONV + "[yolo]\nanchors=4,4\nnum=1\nmask=1", "expected mask entries under num=1"),
        (CONV + "[yolo]\nanchors=4,0\nnum=1", "expected 2 positive anchor sides"),
    ],
)
def test_bad_layers_are_refused_with_their_line(body: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(body)


def test_a_network_without_yolo_is_refused() -> None:
    with pytest.raises(InputError, match=r"x.cfg, line 1 \[net\]: expected at least one \[yolo\]"):
        Darknet(parse_cfg("[net]\n" + CONV, "x.cfg"))


def test_outputs_are_let_go_after_their_last_reader() -> None:
    net = network(CONV + CONV + "[shortcut]\nfrom=-2\n[route]\nlayers=0,-1")
    assert net._last_use == {0, 2}
    assert net._last_reads == {3: [0, 2]}
