"""Darknet's layers as a PyTorch network, built from the sections of a cfg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkd.detectors.darknet.cfg import Section
from detkd.errors import InputError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "mish": nn.Mish,
    "swish": nn.SiLU,
    "logistic": nn.Sigmoid,
}

# Options that would change the forward pass and that no supported cfg uses: refused rather than ignored.
UNSUPPORTED = {
    "convolutional": (
        "antialiasing",
        "assisted_excitation",
        "binary",
        "deform",
        "flipped",
        "rotate",
        "sway",
        "stretch",
        "xnor",
    ),
    "maxpool": ("antialiasing", "avgpool", "maxpool_depth"),
    "yolo": ("new_coords",),
}


class ConvBlock(nn.Module):
    """Convolution, batch norm (optional), activation. Names follow darknet's order of computation."""

    def __init__(
        self,
        in_channels: int,
        filters: int,
        size: int,
        stride: int | tuple[int, int],
        padding: int,
        groups: int,
        dilation: int,
        batch_normalize: bool,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, filters, size, stride, padding, groups=groups, dilation=dilation, bias=not batch_normalize
        )
        self.norm = nn.BatchNorm2d(filters, eps=1e-5) if batch_normalize else nn.Identity()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class MaxPool(nn.Module):
    """Max-pool with darknet's padding: ``padding`` pixels in all (default size - 1), the smaller half left and above."""

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.padding // 2, self.padding - self.padding // 2
        if before == after and 2 * before <= self.size:
            return F.max_pool2d(x, self.size, self.stride, before)
        fits = self.size == self.stride == 2 and self.padding == 1 and x.shape[-1] % 2 == x.shape[-2] % 2 == 0
        if not fits:  # at an even size the padded row and column are never read
            x = F.pad(x, (before, after, before, after), value=float("-inf"))
        return F.max_pool2d(x, self.size, self.stride)


class Route(nn.Module):
    """Concatenate earlier outputs along channels, or one group of each."""

    def __init__(self, layers: Sequence[int], groups: int, group_id: int) -> None:
        super().__init__()
        self.layers, self.groups, self.group_id = tuple(layers), groups, group_id

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if self.groups > 1:
            inputs = [x.chunk(self.groups, dim=1)[self.group_id] for x in inputs]
        return inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), dim=1)


class Shortcut(nn.Module):
    """Add earlier outputs to the last one, then activate."""

    def __init__(self, layers: Sequence[int], activation: nn.Module) -> None:
        super().__init__()
        self.layers, self.activation = tuple(layers), activation

    def forward(self, x: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        for other in inputs:
            x = x + other
        return self.activation(x)


@dataclass(frozen=True)
class YoloSpec:
    """One [yolo] layer. anchors: (width, height) in pixels of the network's input; stride: pixels a cell."""

    layer: int
    stride: int
    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_x_y: float


class Darknet(nn.Module):
    """The network of a cfg. Its output: for each [yolo] layer, in order, (map before the last conv, raw head map).

    Args:
        sections: of :func:`~detkd.detectors.darknet.cfg.parse_cfg`, [net] first.

    Raises InputError, naming the line, on unknown layers, references out of range and shapes that do not fit.
    """

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        net, *body = sections
        self.in_channels = net.integer("channels", 3, minimum=1)
        self.layers = nn.ModuleList()
        self.yolos: list[YoloSpec] = []
        self._channels: list[int] = []
        self._strides: list[float] = []
        for index, section in enumerate(body):
            self._check_options(section)
            self.layers.append(self._build(section, index))
        if not self.yolos:
            raise InputError(f"{net.where}: expected at least one [yolo] layer below, found none")
        self._last_use = self._find_last_use()

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        heads: list[tuple[Tensor, Tensor]] = []
        kept: dict[int, Tensor] = {}
        before_conv = x
        yolo_layers = {y.layer for y in self.yolos}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Route):
                x = layer([kept[i] for i in layer.layers])
            elif isinstance(layer, Shortcut):
                x = layer(x, [kept[i] for i in layer.layers])
            elif index in yolo_layers:
                heads.append((before_conv, x))
            else:
                before_conv = x
                x = layer(x)
            if index in self._last_use:
                kept[index] = x
            for done in self._last_reads.get(index, ()):
                del kept[done]
        return heads

    def conv_blocks(self) -> list[ConvBlock]:
        """All convolutions in the order of the cfg, which is the order of the .weights file."""
        return [layer for layer in self.layers if isinstance(layer, ConvBlock)]

    def _find_last_use(self) -> set[int]:
        last: dict[int, int] = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, (Route, Shortcut)):
                last |= dict.fromkeys(layer.layers, index)
        self._last_reads: dict[int, list[int]] = {}
        for source, reader in last.items():
            self._last_reads.setdefault(reader, []).append(source)
        return set(last)

    @staticmethod
    def _check_options(section: Section) -> None:
        for key in UNSUPPORTED.get(section.kind, ()):
            if section.options.get(key, "0") not in ("0", ""):
                raise InputError(f"{section.where}: expected no {key}, which is not supported, found {section.options[key]!r}")

    def _build(self, section: Section, index: int) -> nn.Module:
        previous = self._channels[-1] if index else self.in_channels
        stride = self._strides[-1] if index else 1.0
        builders: dict[str, Callable[[Section, int, int, float], tuple[nn.Module, int, float]]] = {
            "convolutional": self._convolutional,
            "conv": self._convolutional,
            "maxpool": self._maxpool,
            "max": self._maxpool,
            "dropout": self._dropout,
            "upsample": self._upsample,
            "route": self._route,
            "shortcut": self._shortcut,
            "yolo": self._yolo,
        }
        if section.kind not in builders:
            raise InputError(f"{section.where}: expected a layer of {sorted(builders)}, found [{section.kind}]")
        layer, channels, stride = builders[section.kind](section, index, previous, stride)
        self._channels.append(channels)
        self._strides.append(stride)
        return layer

    def _convolutional(self, s: Section, index: int, previous: int, stride: float) -> tuple[nn.Module, int, float]:
        filters, size, groups = (
            s.integer("filters", minimum=1),
            s.integer("size", 1, minimum=1),
            s.integer("groups", 1, minimum=1),
        )
        step = s.integer("stride", 1, minimum=1)
        step_x, step_y = s.integer("stride_x", step, minimum=1), s.integer("stride_y", step, minimum=1)
        if step_x != step_y:
            raise InputError(f"{s.where}: expected stride_x = stride_y, found {step_x} and {step_y}")
        dilation = s.integer("dilation", 1, minimum=1)
        padding = dilation * (size // 2) if s.integer("pad", 0) else s.integer("padding", 0)
        if previous % groups or filters % groups:
            raise InputError(f"{s.where}: expected groups to divide {previous} inputs and {filters} filters, found {groups}")
        block = ConvBlock(
            previous, filters, size, step_x, padding, groups, dilation, bool(s.integer("batch_normalize", 0)), _activation(s)
        )
        return block, filters, stride * step_x

    def _maxpool(self, s: Section, index: int, previous: int, stride: float) -> tuple[nn.Module, int, float]:
        step = s.integer("stride", 1, minimum=1)
        size = s.integer("size", step, minimum=1)
        return MaxPool(size, step, s.integer("padding", size - 1)), previous, stride * step

    def _dropout(self, s: Section, index: int, previous: int, stride: float) -> tuple[nn.Module, int, float]:
        probability = s.number("probability", 0.5)
        if not 0 <= probability < 1:
            raise InputError(f"{s.where}: expected probability in [0, 1), found {probability}")
        return nn.Dropout(probability), previous, stride

    def _upsample(self, s: Section, index: int, previous: int, stride: float) -> tuple[nn.Module, int, float]:
        factor = s.integer("stride", 2, minimum=1)
        if s.number("scale", 1.0) != 1.0:
            raise InputError(f"{s.where}: expected scale=1, found {s.text('scale')}")
        return nn.Upsample(scale_factor=factor, mode="nearest"), previous, stride / factor

    def _route(self, s: Section, index: int, previous: int, stride: float) -> tuple[nn.Module, int, float]:
        layers = self._references(s, "layers", index)
        groups, group_id = s.integer("groups", 1, minimum=1), s.integer("group_id", 0)
        if group_id >= groups:
            raise InputError(f"{s.where}: expected group_id under groups={groups}, found {group_id}")
        for i in layers:
            if self._channels[i] % groups:
                raise InputError(
                    f"{s.where}: expected groups to divide the {self._channels[i]} channels of layer {i}, found {groups}"
                )
            if self._strides[i] != self._strides[layers[0]]:
                raise InputError(
                    f"{s.where}: expected layers of one stride, found {[int(self._strides[i]) for i in layers]} for layers {layers}"
                )
        return Route(layers, groups, group_id), sum(self._channels[i] // groups for i in layers), self._strides[layers[0]]

    def _shortcut(self, s: Section, index: int, previous: int, stride: float) -> tuple[nn.Module, int, float]:
        layers = self._references(s, "from", index)
        if s.text("weights_type", "none") != "none":
            raise InputError(f"{s.where}: expected no weights_type, found {s.text('weights_type')!r}")
        for i in layers:
            if (self._channels[i], self._strides[i]) != (previous, stride):
                raise InputError(
                    f"{s.where}: expected layer {i} to have the {previous} channels at stride {int(stride)} of the layer above, "
                    f"found {self._channels[i]} at stride {int(self._strides[i])}"
                )
        return Shortcut(layers, _activation(s)), previous, stride

    def _yolo(self, s: Section, index: int, previous: int, stride: float) -> tuple[nn.Module, int, float]:
        classes, anchors = s.integer("classes", 20, minimum=1), s.numbers("anchors")
        count = s.integer("num", len(anchors) // 2, minimum=1)
        if len(anchors) != 2 * count or min(anchors) <= 0:
            raise InputError(
                f"{s.where}: expected {2 * count} positive anchor sides (num={count}), found {len(anchors)}: {anchors}"
            )
        pairs = list(zip(anchors[::2], anchors[1::2], strict=True))
        mask = s.integers("mask", minimum=0) if "mask" in s.options else list(range(count))
        if not mask or max(mask) >= count:
            raise InputError(f"{s.where}: expected mask entries under num={count}, found {mask}")
        if not index or not isinstance(self.layers[-1], ConvBlock):
            raise InputError(f"{s.where}: expected a [convolutional] layer right above")
        if previous != len(mask) * (classes + 5):
            raise InputError(
                f"{s.where}: expected filters={len(mask) * (classes + 5)} above, for {len(mask)} anchors and "
                f"classes={classes}, found filters={previous}"
            )
        if stride != int(stride):
            raise InputError(f"{s.where}: expected a map no finer than the image, found stride {stride}")
        chosen = tuple(pairs[i] for i in mask)
        self.yolos.append(YoloSpec(index, int(stride), chosen, classes, s.number("scale_x_y", 1.0)))
        return nn.Identity(), previous, stride

    def _references(self, s: Section, key: str, index: int) -> list[int]:
        given = s.integers(key)
        layers = [i if i >= 0 else index + i for i in given]
        if not layers or any(not 0 <= i < index for i in layers):
            raise InputError(
                f"{s.where}: expected {key} to name layers from 0 to {index - 1} (or -{index} to -1), found {given}"
            )
        return layers


def _activation(section: Section) -> nn.Module:
    name = section.text("activation", "linear" if section.kind == "shortcut" else "logistic")
    if name not in ACTIVATIONS:
        raise InputError(f"{section.where}: expected an activation of {sorted(ACTIVATIONS)}, found {name!r}")
    return ACTIVATIONS[name]()
