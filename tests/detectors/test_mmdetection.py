"""Checkpoints of MMDetection: a state dict of its public names and shapes, read by a plain forward pass written here."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import roi_align

from detkd.detectors.checkpoint import load_checkpoint, save_checkpoint
from detkd.detectors.mmdetection import load_mmdetection
from detkd.detectors.mmdetection.names import their_name
from detkd.detectors.torchvision import CascadeRCNN, FasterRCNN, RetinaNet
from detkd.detectors.torchvision.base import anchors_of
from detkd.errors import InputError

CLASSES = ("cat", "dog", "kite")
STEM, NECK, FC = 8, 16, 24
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
KINDS = {"faster": FasterRCNN, "cascade": CascadeRCNN, "retina": RetinaNet}
State = dict[str, Tensor]


def public_state(kind: str, depth: int = 18, classes: int = len(CLASSES), on_input: bool = True) -> State:
    """Random weights by the names and shapes of MMDetection 2 and 3, width 1/8."""
    generator = torch.Generator().manual_seed(0)
    state: State = OrderedDict()

    def layer(name: str, *shape: int, bias: bool = True, std: float | None = None) -> None:
        scale = math.sqrt(2 / math.prod(shape[1:])) if std is None else std
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator) * scale
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.1
        state[f"{name}.running_mean"] = torch.randn(channels, generator=generator) * 0.1
        state[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    layer("backbone.conv1", STEM, 3, 7, 7, bias=False)
    norm("backbone.bn1", STEM)
    expansion, before, stages = (4 if depth == 50 else 1), STEM, []
    for stage, count in enumerate(BLOCKS[depth]):
        inside, out = STEM * 2**stage, STEM * 2**stage * expansion
        for i in range(count):
            name = f"backbone.layer{stage + 1}.{i}"
            shapes = (
                [(inside, before, 1), (inside, inside, 3), (out, inside, 1)]
                if depth == 50
                else [(inside, before, 3), (out, inside, 3)]
            )
            for k, (o, c, size) in enumerate(shapes, start=1):
                layer(f"{name}.conv{k}", o, c, size, size, bias=False)
                norm(f"{name}.bn{k}", o)
            if i == 0 and (before != out or stage > 0):
                layer(f"{name}.downsample.0", out, before, 1, 1, bias=False)
                norm(f"{name}.downsample.1", out)
            before = out
        stages.append(out)
    for i, channels in enumerate(stages[1:] if kind == "retina" else stages):
        layer(f"neck.lateral_convs.{i}.conv", NECK, channels, 1, 1)
        layer(f"neck.fpn_convs.{i}.conv", NECK, NECK, 3, 3)
    if kind == "retina":
        layer("neck.fpn_convs.3.conv", NECK, stages[-1] if on_input else NECK, 3, 3)
        layer("neck.fpn_convs.4.conv", NECK, NECK, 3, 3)
        for branch in ("cls", "reg"):
            for i in range(4):
                layer(f"bbox_head.{branch}_convs.{i}.conv", NECK, NECK, 3, 3)
        layer("bbox_head.retina_cls", 9 * classes, NECK, 3, 3)
        layer("bbox_head.retina_reg", 9 * 4, NECK, 3, 3)
        return state
    layer("rpn_head.rpn_conv", NECK, NECK, 3, 3)
    layer("rpn_head.rpn_cls", 3, NECK, 1, 1)
    layer("rpn_head.rpn_reg", 3 * 4, NECK, 1, 1, std=0.02)
    for head in ("0.", "1.", "2.") if kind == "cascade" else ("",):
        layer(f"roi_head.bbox_head.{head}shared_fcs.0", FC, NECK * 49)
        layer(f"roi_head.bbox_head.{head}shared_fcs.1", FC, FC)
        layer(f"roi_head.bbox_head.{head}fc_cls", classes + 1, FC)
        layer(f"roi_head.bbox_head.{head}fc_reg", 4 if kind == "cascade" else 4 * classes, FC)
    return state


def plain_maps(state: State, images: Tensor) -> list[Tensor]:
    """The pyramid of ResNet and FPN, of style "pytorch", images in [0, 255] as MMDetection normalises them."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    mean, std = torch.tensor([123.675, 116.28, 103.53])[:, None, None], torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    x = norm(conv((images * 255 - mean) / std, "backbone.conv1", 2), "backbone.bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    stages = []
    for stage in range(4):
        block = 0
        while f"backbone.layer{stage + 1}.{block}.conv1.weight" in state:
            name, stride = f"backbone.layer{stage + 1}.{block}", 2 if stage > 0 and block == 0 else 1
            deep = f"{name}.conv3.weight" in state
            y = norm(conv(x, f"{name}.conv1", 1 if deep else stride), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", stride if deep else 1), f"{name}.bn2")
            y = norm(conv(y.relu(), f"{name}.conv3"), f"{name}.bn3") if deep else y
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x, block = (x + y).relu(), block + 1
        stages.append(x)
    dense = "bbox_head.retina_cls.weight" in state
    inputs = stages[1:] if dense else stages
    laterals = [conv(m, f"neck.lateral_convs.{i}.conv") for i, m in enumerate(inputs)]
    for i in range(len(laterals) - 1, 0, -1):
        laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[-2:], mode="nearest")
    outs = [conv(m, f"neck.fpn_convs.{i}.conv") for i, m in enumerate(laterals)]
    if not dense:
        return [*outs, F.max_pool2d(outs[-1], 1, 2)]
    source = inputs[-1] if state["neck.fpn_convs.3.conv.weight"].shape[1] != NECK else outs[-1]
    p6 = conv(source, "neck.fpn_convs.3.conv", 2)
    return [*outs, p6, conv(p6, "neck.fpn_convs.4.conv", 2)]


def plain_raw(state: State, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, N, K) classes or objectness, and (B, N, 4) corrections, of all levels."""
    dense = "bbox_head.retina_cls.weight" in state
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for m in maps:
        for values, branch, last, size in zip(
            found,
            ("cls", "reg"),
            ("retina_cls", "retina_reg") if dense else ("rpn_cls", "rpn_reg"),
            (len(CLASSES) if dense else 1, 4),
        ):
            names = [f"bbox_head.{branch}_convs.{i}.conv" for i in range(4)] if dense else ["rpn_head.rpn_conv"]
            x = m
            for name in names:
                x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 1, 1).relu()
            name = f"{'bbox_head' if dense else 'rpn_head'}.{last}"
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 1, state[f"{name}.weight"].shape[-1] // 2)
            values.append(x.permute(0, 2, 3, 1).reshape(len(x), -1, size))
    return torch.cat(found[0], 1), torch.cat(found[1], 1)


def saved(tmp_path: Path, state: State, meta: dict[str, Any] | None = None, name: str = "weights.pth") -> Path:
    path = tmp_path / name
    torch.save({"meta": {"CLASSES": CLASSES} if meta is None else meta, "state_dict": state}, path)
    return path


def images() -> Tensor:
    return torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [18, 50])
def test_raw_outputs_and_maps_equal_a_plain_forward_pass(kind: str, depth: int, tmp_path: Path) -> None:
    state = public_state(kind, depth)
    # double, so that sums of another order agree
    detector = load_mmdetection(saved(tmp_path, state), image_size=(96, 128)).eval().double()
    assert type(detector) is KINDS[kind]
    assert detector.spec.classes == CLASSES
    assert detector.arguments()["backbone"] == f"resnet{depth}"
    state = {name: value.double() for name, value in state.items()}
    maps = plain_maps(state, images().double())
    cls, box = plain_raw(state, maps)
    with torch.no_grad():
        prediction = detector(images().double())
    names = [n for n in prediction.features if n.startswith("p")]
    found = [
        *(prediction.features[name] for name in names),
        prediction.raw["cls" if kind == "retina" else "obj"],
        prediction.raw["box"],
    ]
    for ours, theirs in zip(found, [*maps, cls, box], strict=True):
        torch.testing.assert_close(ours / theirs.abs().max(), theirs / theirs.abs().max(), rtol=0, atol=1e-5)


def test_p6_of_a_retinanet_from_p5(tmp_path: Path) -> None:
    state = public_state("retina", on_input=False)
    detector = load_mmdetection(saved(tmp_path, state), image_size=(96, 128)).eval()
    with torch.no_grad():
        found = detector(images()).raw
    torch.testing.assert_close(found["cls"], plain_raw(state, plain_maps(state, images()))[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["faster", "cascade"])
def test_roi_heads_equal_a_plain_forward_pass(kind: str, tmp_path: Path) -> None:
    state = public_state(kind)
    detector: Any = load_mmdetection(saved(tmp_path, state), image_size=(96, 128)).eval()
    boxes = [torch.tensor([[5.0, 7.0, 60.0, 50.0], [20.0, 3.0, 31.0, 90.0]]), torch.tensor([[0.0, 0.0, 127.0, 95.0]])]
    pooled = roi_align(plain_maps(state, images())[0], boxes, 7, 1 / 4, 0, aligned=True)  # all smaller than 112 px: p2
    for stage in range(3 if kind == "cascade" else 1):
        head = "roi_head.bbox_head." + (f"{stage}." if kind == "cascade" else "")
        x = pooled.flatten(1)
        for name in ("shared_fcs.0", "shared_fcs.1"):
            x = F.linear(x, state[f"{head}{name}.weight"], state[f"{head}{name}.bias"]).relu()
        logits, deltas = (F.linear(x, state[f"{head}{n}.weight"], state[f"{head}{n}.bias"]) for n in ("fc_cls", "fc_reg"))
        with torch.no_grad():
            roi = detector.roi_head(detector.pool(detector(images()), boxes), stage)
        torch.testing.assert_close(roi.logits, torch.cat([logits[:, -1:], logits[:, :-1]], 1), rtol=1e-3, atol=1e-3)
        expected = deltas.reshape(3, -1, 4).expand(3, 3, 4)
        torch.testing.assert_close(roi.deltas, expected, rtol=1e-3, atol=1e-3)


def test_anchors_are_those_of_the_configs(tmp_path: Path) -> None:
    # sides of stride * scale at ratios 1/2, 1, 2 (height to width), around the corner of each cell
    faster: Any = load_mmdetection(saved(tmp_path, public_state("faster")), image_size=(96, 128))
    found = anchors_of(faster.model.rpn.anchor_generator, faster(images()).sizes, (96, 128), torch.device("cpu"))
    root = math.sqrt(2)
    first = [[-16 * root, -8 * root, 16 * root, 8 * root], [-16, -16, 16, 16], [-8 * root, -16 * root, 8 * root, 16 * root]]
    torch.testing.assert_close(found[:3], torch.tensor(first))
    torch.testing.assert_close(found[3:6], torch.tensor(first) + torch.tensor([4, 0, 4, 0]))
    last = torch.tensor([-256.0, -256, 256, 256]) + torch.tensor([64, 64, 64, 64])
    torch.testing.assert_close(found[-2], last)  # 96 px are one and a half cells of stride 64
    retina: Any = load_mmdetection(saved(tmp_path, public_state("retina")), image_size=(96, 128))
    found = anchors_of(retina.model.anchor_generator, retina(images()).sizes, (96, 128), torch.device("cpu"))
    sides = [32 * 2 ** (k / 3) for k in range(3)]
    torch.testing.assert_close(found[3:6, 2] - found[3:6, 0], torch.tensor(sides))
    torch.testing.assert_close(found[6:9, 3] - found[6:9, 1], torch.tensor([s * root for s in sides]))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_has_the_values_of_the_configs_and_a_checkpoint_of_ours_keeps_all(kind: str, tmp_path: Path) -> None:
    detector = load_mmdetection(saved(tmp_path, public_state(kind)), image_size=(96, 128), score_threshold=0.01).eval()
    save_checkpoint(detector, tmp_path / "ours.safetensors")
    again = load_checkpoint(tmp_path / "ours.safetensors").eval()
    arguments = again.arguments()
    assert arguments["max_detections"] == 100
    assert arguments["conventions"] == "mmdetection"
    with torch.no_grad():
        expected, found = detector.decode(detector(images())), again.decode(again(images()))
    assert len(found[0]["boxes"]) > 0
    torch.testing.assert_close([dict(d) for d in found], [dict(d) for d in expected], rtol=0, atol=0)


def test_every_name_of_ours_has_one_of_theirs_and_none_is_left() -> None:
    options: dict[str, Any] = {"classes": CLASSES, "backbone": "resnet18", "width": STEM / 64, "channels": NECK}
    made = {"faster": FasterRCNN(**options), "cascade": CascadeRCNN(**options), "retina": RetinaNet(**options, p6_from="c5")}
    for kind, detector in made.items():
        assert {their_name(name) for name in detector.state_dict()} == set(public_state(kind))
    with pytest.raises(KeyError):
        their_name("model.head.centerness.weight")


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"dataset_meta": {"classes": ("a", "b", "c")}}, ("a", "b", "c")),
        ({"dataset_meta": {"CLASSES": ["a", "b", "c"]}}, ("a", "b", "c")),
        (
            {"CLASSES": ["a", "b", "c"], "config": "backbone=dict(style='pytorch')", "mmdet_version": "2.25.0", "env": None},
            ("a", "b", "c"),
        ),
    ],
)
def test_class_names_of_the_file(meta: dict[str, Any], expected: tuple[str, ...], tmp_path: Path) -> None:
    path = saved(tmp_path, public_state("faster"), meta)
    assert load_mmdetection(path).spec.classes == expected
    assert load_mmdetection(path, classes=("x", "y", "z")).spec.classes == ("x", "y", "z")


@pytest.mark.parametrize("kind", KINDS)
def test_80_classes_without_names_are_cocos(kind: str, tmp_path: Path) -> None:
    save_file(public_state(kind, classes=80), tmp_path / "weights.safetensors")
    spec = load_mmdetection(tmp_path / "weights.safetensors").spec
    assert len(spec.classes) == 80
    assert (spec.classes[0], spec.classes[79], spec.image_size) == ("person", "toothbrush", (800, 800))


def test_half_precision_and_counts_that_are_not_there(tmp_path: Path) -> None:
    state = public_state("faster")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(half, tmp_path / "bare.pth")
    found = load_mmdetection(tmp_path / "bare.pth", classes=CLASSES).state_dict()
    assert found["model.rpn.head.conv.0.0.weight"].dtype == torch.float32
    torch.testing.assert_close(found["model.rpn.head.conv.0.0.weight"], state["rpn_head.rpn_conv.weight"], rtol=1e-3, atol=1e-3)


def test_bad_files_are_named(tmp_path: Path) -> None:
    def refused(state: State, words: str, meta: dict[str, Any] | None = None, **arguments: Any) -> None:
        path = saved(tmp_path, state, meta)
        with pytest.raises(InputError, match=words):
            load_mmdetection(path, **arguments)

    state = public_state("faster")
    refused(
        {k: v for k, v in state.items() if k != "rpn_head.rpn_reg.bias"},
        r"weights.pth: expected rpn_head.rpn_reg.bias \(12,\), found no such",
    )
    refused(
        state | {"roi_head.mask_head.convs.0.conv.weight": torch.zeros(1)},
        "found 1 others, the first is roi_head.mask_head.convs.0.conv.weight",
    )
    refused(state | {"backbone.bn1.weight": torch.zeros(3)}, r"expected backbone.bn1.weight \(8,\), found \(3,\)")
    refused({k: v for k, v in state.items() if not k.startswith("backbone.layer4.1")}, "expected a ResNet-18, 34")
    refused(
        {k: v for k, v in state.items() if not k.startswith("neck")},
        "expected the weight neck.lateral_convs.0.conv.weight, found none",
    )
    refused({"bbox_head.fc_cls.weight": torch.zeros(4, 4)}, "of MMDetection 1")
    refused({"decoder.weight": torch.zeros(4, 4)}, "found the parts decoder")
    refused(
        state,
        "expected weights of MMDetection 2 or later, found those of 1.2.0: its anchors and classes have another order$",
        {"mmdet_version": "1.2.0"},
    )
    refused(state, "style 'caffe'", {"config": "model = dict(backbone=dict(type='ResNet', style='caffe'))"})
    refused(state, "expected the 3 names of the head in .* found none in the file", {})
    refused(state, "expected the 3 names of the head", classes=("a", "b"))
    refused(state, "in the order of the file", classes=("dog", "cat", "kite"))
    agnostic = {k: v[:4] if "fc_reg" in k else v for k, v in state.items()}
    refused(agnostic, r"expected roi_head.bbox_head.fc_reg.weight \(12, 24\), found \(4, 24\)")
    refused({}, "expected a state dict of tensors")


class Opened:
    """Leaves a mark when a pickle that names it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    path = saved(tmp_path, public_state("faster"), {"CLASSES": CLASSES, "hooks": Opened(tmp_path / "mark")})
    with pytest.raises(InputError, match=r"found objects of .*[Pp]ath.*nothing was run.*publish_model"):
        load_mmdetection(path)
    assert not (tmp_path / "mark").exists()
    for name, content in (("text.pth", b"no checkpoint"), ("text.safetensors", b"no checkpoint")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_mmdetection(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="found a list"):
        load_mmdetection(tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"nowhere\.pth: expected a file"):
        load_mmdetection("nowhere.pth")
