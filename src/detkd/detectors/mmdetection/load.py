"""A detector with weights of MMDetection: which one it is, is told from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from detkd.detectors.files import File, locate, read_names
from detkd.detectors.mmdetection.file import read_weights
from detkd.detectors.mmdetection.names import translate
from detkd.detectors.torchvision import CascadeRCNN, FasterRCNN, RetinaNet
from detkd.detectors.torchvision.backbones import resnet_of
from detkd.detectors.torchvision.labels import COCO_CLASSES
from detkd.errors import InputError
from detkd.structures import Resize

_RETINA, _FASTER, _CASCADE = (
    "bbox_head.retina_cls.weight",
    "roi_head.bbox_head.fc_cls.weight",
    "roi_head.bbox_head.0.fc_cls.weight",
)
_ANCHORS_RETINA = 9


def load_mmdetection(
    path: File | str | Path,
    classes: Sequence[str] | File | None = None,
    image_size: Sequence[int] | None = None,
    resize: Resize = "stretch",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    anchor_size: int = 32,
    score_threshold: float = 0.05,
    nms_iou: float = 0.5,
    max_detections: int = 100,
) -> FasterRCNN | CascadeRCNN | RetinaNet:
    """Open a checkpoint of MMDetection 2 or 3: Faster R-CNN or Cascade R-CNN with FPN, or RetinaNet, on a ResNet-18 to 152.

    The detectors are those of ``detkd.detectors.torchvision`` with ``conventions="mmdetection"``, so raw outputs, proposals, RoI features
    and detections are MMDetection's on the same pixels. Its images keep their ratio of sides and are padded; ours are brought to one size.

    Args:
        path: {state_dict, meta} or a bare state dict, by torch.save or as .safetensors; or a name to look for.
        classes: names, or a .names file; None: those in the file's meta data, else COCO's where the head has 80.
        image_size: (height, width) that images are brought to; None: (800, 800). resize: how.
        mean, std: of normalisation; None: those of MMDetection's configs for backbones of style "pytorch", which are torchvision's.
        anchor_size: side in pixels of the smallest anchors, 4 times the finest stride of a RetinaNet, 8 times that of an RPN.
        score_threshold, nms_iou, max_detections: of decoding, as in MMDetection's configs.

    Raises InputError naming the file where it cannot be read, is another detector, or does not fit; see
    :func:`~detkd.detectors.mmdetection.file.read_weights` and :func:`~detkd.detectors.mmdetection.names.translate`.
    """
    found = locate(path)
    weights = read_weights(found)
    state, who = weights.state, str(found)
    kind, last = _kind(state, who)
    count = len(state[last]) // _ANCHORS_RETINA if kind is RetinaNet else len(state[last]) - 1
    options: dict[str, Any] = {
        "classes": _names(classes, weights.classes, count, who),
        "image_size": image_size,
        "resize": resize,
        "mean": mean,
        "std": std,
        "score_threshold": score_threshold,
        "nms_iou": nms_iou,
        "max_detections": max_detections,
        "anchor_size": anchor_size,
        "conventions": "mmdetection",
        **_backbone(state, who),
        "channels": _shape(state, "neck.lateral_convs.0.conv.weight", who)[0],
    }
    detector: FasterRCNN | CascadeRCNN | RetinaNet
    if kind is RetinaNet:
        # the first of the extra convolutions reads c5, unless it has the channels of the pyramid
        reads = _shape(state, "neck.fpn_convs.3.conv.weight", who)[1]
        detector = RetinaNet(**options, p6_from="p5" if reads == options["channels"] else "c5")
    else:
        options["roi_width"] = _shape(state, last.replace("fc_cls", "shared_fcs.0"), who)[0]
        detector = CascadeRCNN(**options) if kind is CascadeRCNN else FasterRCNN(**options)
    detector.load_state_dict(translate(detector.state_dict(), state, who))
    return detector


def _kind(state: Mapping[str, Tensor], who: str) -> tuple[type[FasterRCNN] | type[CascadeRCNN] | type[RetinaNet], str]:
    """The family of a state dict, and the name of its (first) layer of classes."""
    for name, family in ((_RETINA, RetinaNet), (_CASCADE, CascadeRCNN), (_FASTER, FasterRCNN)):
        if name in state:
            return family, name
    parts = sorted({name.split(".")[0] for name in state})
    old = "; bbox_head.fc_cls is of MMDetection 1" if "bbox_head.fc_cls.weight" in state else ""
    raise InputError(
        f"{who}: expected a Faster R-CNN ({_FASTER}), Cascade R-CNN ({_CASCADE}) or RetinaNet ({_RETINA}) of MMDetection, found the parts "
        f"{', '.join(parts[:8])}{old}"
    )


def _backbone(state: Mapping[str, Tensor], who: str) -> dict[str, Any]:
    """Name and width of the ResNet."""
    stem = _shape(state, "backbone.conv1.weight", who)[0]
    depths = tuple(sum(f"backbone.layer{stage}.{i}.conv1.weight" in state for i in range(64)) for stage in (1, 2, 3, 4))
    name = resnet_of(depths, bottleneck="backbone.layer1.0.conv3.weight" in state)
    if name is None:
        raise InputError(f"{who}: expected a ResNet-18, 34, 50, 101 or 152, found one of {depths} blocks")
    return {"backbone": name, "width": stem / 64}


def _names(given: Sequence[str] | File | None, of_file: tuple[str, ...] | None, count: int, who: str) -> tuple[str, ...]:
    if given is not None:
        names = read_names(given) if isinstance(given, (File, str)) else tuple(given)
        if len(names) != count:
            raise InputError(f"classes: expected the {count} names of the head in {who}, got {len(names)}")
        if of_file is not None and names != of_file and set(names) == set(of_file):
            raise InputError(f"classes: expected the names in the order of the file {who}, {list(of_file)}, got {list(names)}")
        return names
    if of_file is not None and len(of_file) == count:
        return of_file
    if count == len(COCO_CLASSES):
        return COCO_CLASSES
    stored = "none" if of_file is None else f"{len(of_file)}"
    raise InputError(
        f"classes: expected the {count} names of the head in {who}, found {stored} in the file; give classes=[...]"
    )


def _shape(state: Mapping[str, Tensor], name: str, who: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim < 1:
        raise InputError(f"{who}: expected the weight {name}, found none")
    return tuple(state[name].shape)
