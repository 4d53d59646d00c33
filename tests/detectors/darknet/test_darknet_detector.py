"""DarknetDetector: gains, decoding, refusals, and real weights on a real image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.ops import box_iou

from detkd.classes import canonical
from detkd.detectors.darknet.detector import DarknetDetector, from_cfg, yolov3, yolov3_tiny
from detkd.detectors.files import read_names
from detkd.errors import InputError
from detkd.structures import Prediction, Target

CLASSES = ("a", "b", "c")
CFG = """[net]
width=64
height=48
[convolutional]
filters=8
size=3
stride=8
pad=1
batch_normalize=1
activation=leaky
[convolutional]
filters=16
activation=linear
[yolo]
anchors=8,8, 20,12
classes=3
num=2
scale_x_y=1.05
"""
TARGETS: list[Target] = [{"boxes": torch.tensor([[4.0, 6, 20, 18]]), "labels": torch.tensor([1])}]


def small(**changes: Any) -> DarknetDetector:
    torch.manual_seed(0)
    return DarknetDetector(**({"cfg": CFG, "classes": CLASSES} | changes)).eval()


def test_size_comes_from_the_cfg_unless_given() -> None:
    assert small().spec.image_size == (48, 64)
    assert small(image_size=(32, 80)).spec.image_size == (32, 80)


def test_raw_is_split_and_ordered_fine_first() -> None:
    detector = yolov3(CLASSES, (64, 96), width=0.125)
    prediction = detector.eval()(torch.rand(2, 3, 64, 96))
    assert prediction.sizes == ((8, 12, 3), (4, 6, 3), (2, 3, 3))
    assert prediction.strides == (8, 16, 32)
    assert {k: v.shape for k, v in prediction.raw.items()} == {"box": (2, 378, 4), "obj": (2, 378, 1), "cls": (2, 378, 3)}
    assert {k: v.shape[-2:] for k, v in prediction.features.items()} == {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3)}


def test_gains_multiply_the_parts() -> None:
    images = torch.rand(1, 3, 48, 64)
    one = small(box_gain=1, obj_gain=1, cls_gain=1)
    ours = small(box_gain=2, obj_gain=10, cls_gain=40)
    base, found = one.loss(one(images), TARGETS), ours.loss(ours(images), TARGETS)
    assert {k: (found[k] / base[k]).item() for k in base} == pytest.approx({"box": 2, "obj": 10, "cls": 40})
    wide, narrow = torch.zeros(1, 3, 48, 320), torch.zeros(1, 3, 48, 64)
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    with torch.no_grad():
        for module in one.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.zero_()
    assert (one.loss(one(wide), empty)["obj"] / one.loss(one(narrow), empty)["obj"]).item() == pytest.approx(5, rel=1e-4)


def test_class_gain_is_scaled_by_the_number_of_classes() -> None:
    detector = small(cls_gain=80.0)
    prediction = detector(torch.rand(1, 3, 48, 64))
    flat = {k: torch.zeros_like(v) for k, v in prediction.raw.items()}
    found = detector.loss(Prediction(flat, prediction.sizes, prediction.strides, {}, (48, 64)), TARGETS)
    assert found["cls"].item() == pytest.approx(3 * 0.693147, rel=1e-4)  # 80 * 3/80 * log 2


def test_decode_is_that_of_a_loop() -> None:
    detector = small(score_threshold=0.3, nms_iou=0.3, max_detections=12)
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        prediction = detector(images)
        prediction.raw["obj"] += 5 * torch.randn(prediction.raw["obj"].shape, generator=torch.Generator().manual_seed(0)) + 4
        prediction.raw["cls"] += 3 * torch.randn(prediction.raw["cls"].shape, generator=torch.Generator().manual_seed(1)) + 2
    (found,) = detector.decode(prediction)
    corners = detector.boxes(prediction)[0]
    candidates = []
    for n in range(corners.shape[0]):
        objectness = prediction.raw["obj"][0, n, 0].sigmoid().item()
        for c in range(3):
            score = objectness * prediction.raw["cls"][0, n, c].sigmoid().item()
            if score > 0.3:
                candidates.append((score, c, n))
    kept: list[tuple[float, int, int]] = []
    for score, c, n in sorted(candidates, reverse=True):
        if all(c != other or box_iou(corners[n : n + 1], corners[m : m + 1]) <= 0.3 for _, other, m in kept):
            kept.append((score, c, n))
    kept = kept[:12]
    assert len(kept) == 12 < len(candidates)
    torch.testing.assert_close(found["scores"], torch.tensor([k[0] for k in kept]))
    assert found["labels"].tolist() == [k[1] for k in kept]
    torch.testing.assert_close(found["boxes"], corners[[k[2] for k in kept]])


def test_decode_of_nothing() -> None:
    (found,) = small(score_threshold=0.999).decode(small()(torch.rand(1, 3, 48, 64)))
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].shape == found["scores"].shape == (0,)


def test_arguments_are_json_and_build_it_again() -> None:
    detector = small(box_gain=1.5, iou_threshold=0.4, resize="letterbox")
    arguments = json.loads(json.dumps(detector.arguments()))
    again = DarknetDetector(**arguments).eval()
    assert again.arguments() == detector.arguments()
    assert again.spec == detector.spec
    assert again.iou_threshold == 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b")}, r"x.cfg, line 14 \[yolo\]: expected classes=2 for the 2 class names given, found classes=3"),
        ({"cfg": CFG.replace("[net]", "[net]\nchannels=1")}, r"line 1 \[net\]: expected channels=3, found 1"),
        ({"cfg": CFG.replace("filters=16", "filters=18")}, r"line 14 \[yolo\]: expected filters=16 above.*found filters=18"),
        ({"cfg": CFG.replace("[convolutional]", "[gru]", 1)}, r"line 4 \[gru\]"),
    ],
)
def test_bad_cfgs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(source="x.cfg", **changes)


def test_image_size_must_fit_the_strides() -> None:
    with pytest.raises(InputError, match="expected an image size that 32 divides, got 64x50"):
        yolov3_tiny(CLASSES, (64, 64), width=0.25)(torch.rand(1, 3, 64, 50))


def test_from_cfg_fits_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.cfg"
    path.write_text(CFG)
    assert from_cfg(path, CLASSES).spec.classes == CLASSES
    with pytest.raises(InputError, match=r"a\.cfg, line 14"):
        from_cfg(path, ("x",))
    fitted = from_cfg(path, ("x",), fit_classes=True)
    assert fitted.eval()(torch.rand(1, 3, 48, 64)).raw["cls"].shape == (1, 96, 1)


def test_weights_round_trip_through_the_detector(tmp_path: Path) -> None:
    detector, other = small(), small()
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    detector.save_weights(tmp_path / "a.weights")
    other.load_weights(tmp_path / "a.weights")
    images = torch.rand(1, 3, 48, 64)
    assert torch.equal(other(images).raw["box"], detector(images).raw["box"])


def real_image(shared: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor, list[str]]:
    """An image of coco-val164 with one large object, stretched to ``size``, its boxes and class names."""
    folder = shared / "data" / "coco-val164"
    coco = json.loads((folder / "instances.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    largest = max(
        (a for a in coco["annotations"] if not a.get("iscrowd") and names[a["category_id"]] in ("cat", "train", "bus", "bear")),
        key=lambda a: (a["area"], a["id"]),
    )
    record = next(i for i in coco["images"] if i["id"] == largest["image_id"])
    image = decode_image(str(folder / "images" / record["file_name"]), ImageReadMode.RGB)[None].float() / 255
    image = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    own = [a for a in coco["annotations"] if a["image_id"] == record["id"] and not a.get("iscrowd")]
    factor = torch.tensor([size[1] / record["width"], size[0] / record["height"]] * 2)
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]) * factor
    return image, boxes, [names[a["category_id"]] for a in own]


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_real_weights_see_what_is_in_a_real_image(shared: Path, name: str) -> None:
    weights = shared / "weights"
    detector = from_cfg(weights / f"{name}.cfg", read_names(weights / "coco.names"), (320, 320)).eval()
    detector.load_weights(weights / f"{name}.weights")
    image, boxes, names = real_image(shared, (320, 320))
    with torch.no_grad():
        (found,) = detector.decode(detector(image))
    label = detector.spec.classes[int(found["labels"][0])]
    same = [i for i, n in enumerate(names) if canonical(n) == label]
    assert same, f"top detection is {label}, image has {names}"
    assert box_iou(found["boxes"][:1], boxes[same]).max() > 0.5
    assert found["scores"][0] > 0.5
