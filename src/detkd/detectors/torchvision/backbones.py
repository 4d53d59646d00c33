"""Backbones with a feature pyramid, of any width, from scratch: ResNet-18 to 152, and torchvision's MobileNetV3-Large."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN, mobilenet_backbone
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock
from torchvision.ops.misc import FrozenBatchNorm2d

from detkd.errors import InputError

_RESNETS: dict[str, tuple[type[nn.Module], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
RESNETS = tuple(_RESNETS)
MOBILENET = "mobilenet_v3_large"


def stage_channels(backbone: str, width: float = 1.0) -> tuple[int, int, int, int]:
    """Channels of the stages c2 to c5 of a ResNet.

    width: factor on all channels; 64 * width is rounded to a multiple of 8, at least 8, and doubled stage by stage.
    """
    block, _ = _RESNETS[backbone]
    base = max(8, round(64 * width / 8) * 8)
    expansion = int(getattr(block, "expansion"))  # noqa: B009 (nn.Module knows no such attribute)
    return base * expansion, 2 * base * expansion, 4 * base * expansion, 8 * base * expansion


def resnet_of(depths: tuple[int, ...], bottleneck: bool) -> str | None:
    """The ResNet with these numbers of blocks a stage; None where there is none."""
    for name, (block, blocks) in _RESNETS.items():
        if blocks == depths and (block is Bottleneck) == bottleneck:
            return name
    return None


def resnet_body(backbone: str, width: float = 1.0) -> nn.Sequential:
    """A ResNet (He et al., CVPR 2016) without its classifier: conv1, bn1, relu, maxpool, layer1 to layer4.

    Names, and at width 1 shapes too, are those of ``torchvision.models.resnet``; all weights are trainable, norms are BatchNorm2d.
    torchvision's own ResNet has a fixed width, and its detection builder freezes the norms and first stages of a random network.
    """
    block, depths = _RESNETS[backbone]
    channels = stage_channels(backbone, width)
    stem = max(8, round(64 * width / 8) * 8)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(stem),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    previous = stem
    for stage, (depth, out) in enumerate(zip(depths, channels)):
        planes = stem * 2**stage
        blocks: list[nn.Module] = []
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            shortcut = None
            if stride != 1 or previous != out:
                shortcut = nn.Sequential(nn.Conv2d(previous, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
            blocks.append(block(previous, planes, stride, shortcut))
            previous = out
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    body = nn.Sequential(layers)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def resnet_fpn(
    backbone: str,
    width: float,
    channels: int,
    first_stage: int,
    extra: ExtraFPNBlock | None,
    fpn_norm: type[nn.Module] | None = None,
) -> BackboneWithFPN:
    """A ResNet and its feature pyramid.

    Args:
        backbone: one of RESNETS. width: factor on its channels. channels: of the pyramid.
        first_stage: 1 (c2) to 4 (c5): the finest stage that feeds the pyramid. extra: makes coarser levels; None: a max-pool.
    """
    stages = range(first_stage, 5)
    return BackboneWithFPN(
        resnet_body(backbone, width),
        {f"layer{stage}": str(i) for i, stage in enumerate(stages)},
        [stage_channels(backbone, width)[stage - 1] for stage in stages],
        channels,
        extra_blocks=extra,
        norm_layer=fpn_norm,
    )


class TrunkOnly(nn.Module):
    """A backbone without a pyramid, of the same parts: ``body`` gives the stages, ``fpn`` their last."""

    def __init__(self, body: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, LastOf(), out_channels


class LastOf(nn.Module):
    """The last of several maps, under the name "0"."""

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps by name, fine first, to the last of them."""
        return {"0": list(maps.values())[-1]}


def resnet_c4(backbone: str, width: float) -> tuple[TrunkOnly, nn.Module]:
    """A ResNet up to layer3, which gives c2 to c4, and its layer4 alone."""
    body = resnet_body(backbone, width)
    last = body.get_submodule("layer4")
    del body.layer4
    stages = IntermediateLayerGetter(body, {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3)})
    return TrunkOnly(stages, stage_channels(backbone, width)[2]), last


def mobilenet_fpn() -> BackboneWithFPN:
    """torchvision's MobileNetV3-Large with a pyramid of 256 channels over its last two stages, trainable throughout."""
    return mobilenet_backbone(backbone_name=MOBILENET, weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=6)


def check_backbone(own: str, backbone: str | None, width: float, channels: int) -> str:
    """The name of the backbone to build, None meaning the architecture's own.

    Raises InputError on unknown names and widths; MobileNet comes in one size only.
    """
    name = own if backbone is None else backbone
    if name != own or name in RESNETS:
        check_resnet(name, width, channels, also=own)
    if name == MOBILENET and (width != 1.0 or channels != 256):
        raise InputError(
            f"backbone: {name} comes with width=1 and channels=256 only, got width={width} and channels={channels}"
        )
    return name


def check_resnet(backbone: str, width: float, channels: int = 256, also: str | None = None) -> None:
    """Raises InputError unless ``backbone`` is one of RESNETS, and width and channels are positive. also: another name for the message."""
    if backbone not in RESNETS:
        raise InputError(f"backbone: expected one of {sorted({*RESNETS} | ({also} if also else set()))}, got {backbone!r}")
    if not width > 0:
        raise InputError(f"width: expected a positive factor, got {width}")
    if channels < 1:
        raise InputError(f"channels: expected a positive number, got {channels}")


def freeze_norms(module: nn.Module, eps: float) -> None:
    """Put FrozenBatchNorm2d of ``eps`` in the place of each BatchNorm2d below ``module``, keeping its tensors."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_norms(child, eps)


def pyramid(backbone: Any, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Backbone stages and pyramid maps by torchvision's names, fine first, of normalised images (B, 3, H, W)."""
    stages: dict[str, Tensor] = backbone.body(images)
    return stages, backbone.fpn(stages)
