"""COCO's 91 columns, and torchvision's published weights: found, downloaded, refused."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.misc import FrozenBatchNorm2d

from detkd.detectors.torchvision import FCOS, SSD, FasterRCNN, RetinaNet, weights
from detkd.detectors.torchvision.labels import COCO91, COCO_CLASSES, make_head_labels
from detkd.errors import InputError
from detkd.structures import Target

NARROW: dict[str, Any] = {"image_size": (96, 96), "backbone": "resnet18", "channels": 32, "width": 0.25}
HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ssdlite320_mobilenet_v3_large": (SSD, {}),
    "retinanet_resnet50_fpn": (RetinaNet, NARROW),
    "fcos_resnet50_fpn": (FCOS, NARROW),
    "fasterrcnn_resnet50_fpn": (FasterRCNN, NARROW | {"proposals": 32, "roi_width": 64}),
}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty weight folders, and no network."""
    monkeypatch.setenv("DETKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETKD_SHARED", str(tmp_path / "shared"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def no_network(url: str, *_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    found = {"cache": tmp_path / "cache", "shared": tmp_path / "shared" / "weights", "hub": tmp_path / "hub" / "checkpoints"}
    for folder in found.values():
        folder.mkdir(parents=True)
    return found


def save_published(state: dict[str, Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a state dict as the file of an address whose name carries its hash."""
    draft = folder / "draft"
    torch.save(state, draft)
    path = folder / f"detector_coco-{hashlib.sha256(draft.read_bytes()).hexdigest()[:8]}.pth"
    draft.rename(path)
    monkeypatch.setattr(weights, "published_url", lambda *_: f"https://example.org/models/{path.name}")
    return path


def test_coco_has_80_classes_in_91_columns() -> None:
    assert (len(COCO91), len(COCO_CLASSES)) == (91, 80)
    assert (COCO_CLASSES[0], COCO_CLASSES[11], COCO_CLASSES[-1]) == ("person", "stop sign", "toothbrush")
    labels = make_head_labels(None, coco91=True, background=True)
    assert labels.to_columns(torch.tensor([0, 11, 79])).tolist() == [1, 13, 90]
    everything = {"boxes": torch.zeros(91, 4), "scores": torch.linspace(1, 0, 91), "labels": torch.arange(91)}
    found = labels.to_detection(everything)
    assert found["labels"].tolist() == list(range(80))
    assert found["scores"][11] == everything["scores"][13]


@pytest.mark.parametrize("background", [True, False])
def test_select_takes_the_columns_of_the_classes(background: bool) -> None:
    logits = torch.arange(91.0).expand(1, 2, 91)
    chosen = make_head_labels(None, coco91=True, background=background).select(logits)
    columns = [COCO91.index(name) for name in COCO_CLASSES]
    assert chosen[0, 1].tolist() == ([0] if background else []) + columns
    own = make_head_labels(["a", "b"], coco91=False, background=background)
    assert own.width == 2 + background
    assert own.select(logits) is logits
    assert own.to_columns(torch.tensor([0, 1])).tolist() == [background, 1 + background]


def test_other_classes_do_not_fit_91_columns() -> None:
    with pytest.raises(InputError, match="80 COCO names"):
        make_head_labels(["cat"], coco91=True, background=True)
    assert make_head_labels(COCO_CLASSES, coco91=True, background=True).classes == COCO_CLASSES


@pytest.mark.parametrize("name", HEADS)
def test_91_columns_behind_80_classes(name: str) -> None:
    family, options = HEADS[name]
    torch.manual_seed(0)
    detector = family(name, coco91=True, score_threshold=0.005, **options).eval().requires_grad_(False)
    assert detector.spec.classes == COCO_CLASSES
    height, width = detector.spec.image_size
    images = torch.rand(2, 3, height, width)
    prediction = detector(images)
    if "cls" in prediction.raw:
        assert prediction.raw["cls"].shape[-1] == 80 + int(detector.labels.background)
        assert len(prediction.image(1).state["logits"]) == 1
    target = Target(boxes=torch.tensor([[8.0, 8.0, 60.0, 50.0]]), labels=torch.tensor([79]))
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    for single in (prediction.image(0), prediction.image(1)):
        assert all(torch.isfinite(v) for v in detector.loss(single, [target]).values())
    assert all(torch.isfinite(v) for v in detector.loss(prediction, [target, empty]).values())
    detector.model.transform = GeneralizedRCNNTransform(
        height, width, list(detector.spec.mean), list(detector.spec.std), size_divisible=1, fixed_size=(width, height)
    )
    for ours, theirs in zip(detector.decode(prediction), detector.model(list(images)), strict=True):
        named = [i for i, column in enumerate(theirs["labels"].tolist()) if COCO91[column] in COCO_CLASSES]
        assert len(named) > 0
        assert [COCO_CLASSES[i] for i in ours["labels"]] == [COCO91[theirs["labels"][i]] for i in named]
        torch.testing.assert_close(ours["boxes"], theirs["boxes"][named], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours["scores"], theirs["scores"][named], rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", ["cache", "shared", "hub"])
def test_published_weights_are_found(place: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=91).state_dict()
    save_published(state, folders[place], monkeypatch)
    detector = SSD("ssdlite320_mobilenet_v3_large", weights="COCO_V1")
    assert all(torch.equal(value, state[name]) for name, value in detector.model.state_dict().items())
    assert detector.spec.classes == COCO_CLASSES
    arguments = detector.arguments()
    assert arguments["weights"] is None
    assert arguments["coco91"] is True
    SSD(**arguments).load_state_dict(detector.state_dict())


def test_published_norms_are_frozen(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    source = get_model("fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None, num_classes=91)
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_published(state, folders["cache"], monkeypatch)
    detector = FasterRCNN("fasterrcnn_mobilenet_v3_large_320_fpn", weights="COCO_V1")
    assert all(isinstance(n.module, FrozenBatchNorm2d) for n in detector.norms())
    assert len(detector.norms()) == 46
    assert detector.arguments()["frozen_norms"] is True
    FasterRCNN(**detector.arguments()).load_state_dict(detector.state_dict())


@pytest.mark.parametrize("name", [*HEADS, "retinanet_resnet50_fpn_v2", "ssd300_vgg16", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_every_architecture_has_an_address(name: str) -> None:
    assert weights.published_url(name, "COCO_V1").startswith("https://download.pytorch.org/models/")


def test_missing_weights_say_what_to_put_where(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError) as error:
        SSD("ssdlite320_mobilenet_v3_large", weights="COCO_V1")
    message = str(error.value)
    assert "https://download.pytorch.org/models/ssdlite320_mobilenet_v3_large_coco-a79551df.pth" in message
    assert all(str(folder) in message for folder in folders.values())
    assert not any(list(folder.iterdir()) for folder in folders.values())


def test_download_goes_to_the_cache_if_set(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(url: str, target: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = "https://example.org/models/detector_coco-a79551df.pth"
    assert weights.fetch(url) == folders["cache"] / "detector_coco-a79551df.pth"
    monkeypatch.delenv("DETKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders["cache"] / "empty"))
    assert weights.fetch(url) == folders["hub"] / "detector_coco-a79551df.pth"
    assert asked == [(url, "a79551df")] * 2


def test_damaged_weights_are_refused(folders: dict[str, Path]) -> None:
    (folders["cache"] / "ssdlite320_mobilenet_v3_large_coco-a79551df.pth").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"sha256 starts with a79551df.*coco-a79551df\.pth"):
        SSD("ssdlite320_mobilenet_v3_large", weights="COCO_V1")


def test_weights_of_another_detector_are_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_published({"backbone.weight": torch.zeros(1)}, folders["cache"], monkeypatch)
    with pytest.raises(InputError, match=f"state dict of ssdlite320_mobilenet_v3_large in .*{path.name}"):
        SSD("ssdlite320_mobilenet_v3_large", weights="COCO_V1")


def test_unknown_weights_are_named() -> None:
    with pytest.raises(InputError, match=r"weights: expected one of \['COCO_V1'.*'COCO_V9'"):
        SSD("ssdlite320_mobilenet_v3_large", weights="COCO_V9")


def test_published_weights_need_the_published_sizes() -> None:
    with pytest.raises(InputError, match=r"retinanet_resnet50_fpn need the default backbone, channels"):
        RetinaNet(weights="COCO_V1", backbone="resnet18", channels=64)
    with pytest.raises(InputError, match=r"need the default roi_width"):
        FasterRCNN(weights="COCO_V1", roi_width=64)
