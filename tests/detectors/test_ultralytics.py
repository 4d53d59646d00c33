"""UltralyticsDetector against the package itself; what holds for every detector is in tests/test_catalogue.py."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkd.detectors.checkpoint import fingerprint
from detkd.detectors.files import File
from detkd.detectors.folding import TappedDetector
from detkd.detectors.ultralytics import UltralyticsDetector, pretrained
from detkd.errors import InputError
from detkd.structures import Prediction, Target

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="no package ultralytics; pip install 'detkd[ultralytics]'"
)
CLASSES = ("cat", "dog", "kite", "cup", "hat")
HEIGHT, WIDTH = 128, 160
small: Any = partial(UltralyticsDetector, image_size=(64, 64), width=0.125)


@pytest.fixture(scope="module", autouse=True)
def _settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package writes its settings where this says, when it is imported."""
    before = os.environ.get("YOLO_CONFIG_DIR")
    os.environ["YOLO_CONFIG_DIR"] = str(tmp_path_factory.mktemp("settings"))
    yield
    if before is None:
        del os.environ["YOLO_CONFIG_DIR"]
    else:
        os.environ["YOLO_CONFIG_DIR"] = before


@pytest.fixture(scope="module", params=["yolov8n", "yolo11n"])
def detector(request: pytest.FixtureRequest) -> Any:
    """With random weights, norms that have seen a batch, and scores that differ."""
    torch.manual_seed(0)
    made = UltralyticsDetector(CLASSES, request.param, (HEIGHT, WIDTH))
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        made.train()(images(4))
        for branch in made.network.model[-1].cv3:
            nn.init.normal_(branch[-1].weight, 0, 0.1)
            nn.init.normal_(branch[-1].bias, -3, 0.5)
    return made.eval().requires_grad_(False)


def images(count: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def some_targets(count: int, seed: int, least: int = 16) -> list[Target]:
    """0 to 6 boxes an image, of ``least`` to 64 pixels a side, inside it; every other list has whole pixels."""
    generator = torch.Generator().manual_seed(seed)
    targets: list[Target] = []
    for _ in range(count):
        boxes = int(torch.randint(0, 7, (), generator=generator))
        size = least + torch.rand(boxes, 2, generator=generator) * (64 - least)
        corner = torch.rand(boxes, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - size)
        corners = torch.cat([corner, corner + size], dim=1)
        labels = torch.randint(0, len(CLASSES), (boxes,), generator=generator)
        targets.append({"boxes": corners.round() if seed % 2 else corners, "labels": labels})
    return targets


def package_loss(detector: Any, prediction: Prediction, targets: list[Target]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The package's own loss on the same raw outputs: its parts, and the gradient by raw output."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils.loss import v8DetectionLoss

    detector.network.args = get_cfg()  # where it finds its gains
    criterion = v8DetectionLoss(detector.network)
    box, cls = (prediction.raw[name].detach().clone().requires_grad_() for name in ("box", "cls"))
    flat = torch.cat([box, cls], dim=-1).transpose(1, 2)  # (B, 64 + C, N)
    parts = torch.split(flat, [h * w for h, w, _ in prediction.sizes], dim=-1)
    maps = [part.unflatten(-1, size[:2]) for part, size in zip(parts, prediction.sizes)]
    index = torch.cat([torch.full((len(t["boxes"]),), float(i)) for i, t in enumerate(targets)])
    x1, y1, x2, y2 = torch.cat([t["boxes"] for t in targets]).unbind(1)
    batch = {
        "batch_idx": index,
        "cls": torch.cat([t["labels"] for t in targets]).float(),
        "bboxes": torch.stack([(x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT], dim=1),
    }
    given: Any = maps
    if hasattr(criterion, "parse_output"):  # 8.4
        given = {"boxes": box.transpose(1, 2), "scores": cls.transpose(1, 2), "feats": maps}
    total, found = criterion(given, batch)
    values = list(found.values()) if isinstance(found, dict) else list(found)
    total.sum().backward()
    assert box.grad is not None
    assert cls.grad is not None
    count = len(targets)  # the package multiplies by the batch
    return dict(zip(("box", "cls", "dfl"), values)), {"box": box.grad / count, "cls": cls.grad / count}


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_its_gradient_are_the_packages(detector: Any, seed: int) -> None:
    prediction = detector(images(3, seed))
    noise = torch.Generator().manual_seed(seed)
    for name, value in prediction.raw.items():
        spread = torch.randn(value.shape, generator=noise) * seed
        prediction.raw[name] = (value + spread).requires_grad_()
    targets = some_targets(3, seed)
    ours = detector.loss(prediction, targets)
    expected, gradients = package_loss(detector, prediction, targets)
    assert sum(len(t["boxes"]) for t in targets) > 3
    torch.testing.assert_close(
        {k: v.detach() for k, v in ours.items()}, {k: v.detach() for k, v in expected.items()}, rtol=1e-4, atol=1e-5
    )
    torch.stack(list(ours.values())).sum().backward()
    for name, gradient in gradients.items():
        found = prediction.raw[name].grad
        assert found is not None
        assert (found - gradient).norm() <= 1e-3 * gradient.norm()


def test_gains_are_factors() -> None:
    plain, doubled = small(CLASSES), small(CLASSES, box_gain=15.0, cls_gain=2.0, dfl_gain=0.0)
    doubled.load_state_dict(plain.state_dict())
    targets: list[Target] = [{"boxes": torch.tensor([[8.0, 8.0, 50.0, 40.0]]), "labels": torch.tensor([1])}]
    one, two = (d.eval().loss(d(torch.ones(1, 3, 64, 64) / 2), targets) for d in (plain, doubled))
    torch.testing.assert_close(two, {"box": 2 * one["box"], "cls": 4 * one["cls"], "dfl": 0 * one["dfl"]})


def test_one_target_an_image_is_wanted(detector: Any) -> None:
    with pytest.raises(ValueError, match="expected one target an image, got 1 targets for 2 images"):
        detector.loss(detector(images()), some_targets(1, 0))


def package_nms(output: Tensor, **settings: Any) -> list[Tensor]:
    try:
        from ultralytics.utils.nms import non_max_suppression
    except ImportError:
        from ultralytics.utils.ops import non_max_suppression
    return non_max_suppression(output, multi_label=True, max_time_img=10.0, **settings)


@pytest.mark.parametrize(("threshold", "iou", "most"), [(0.001, 0.7, 300), (0.05, 0.45, 20)])
def test_decode_is_the_packages(detector: Any, threshold: float, iou: float, most: int) -> None:
    with torch.no_grad():
        output = detector.network.eval()(images())
    expected = package_nms(output[0], conf_thres=threshold, iou_thres=iou, max_det=most)
    detector.score_threshold, detector.nms_iou, detector.max_detections = threshold, iou, most
    found = detector.decode(detector(images()))
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs) > 10
        limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
        torch.testing.assert_close(ours["boxes"], torch.minimum(theirs[:, :4].clamp(min=0), limit), rtol=0, atol=1e-3)
        torch.testing.assert_close(ours["scores"], theirs[:, 4], rtol=0, atol=1e-5)
        assert torch.equal(ours["labels"], theirs[:, 5].long())


def test_features_are_backbone_and_neck(detector: Any) -> None:
    prediction = detector(images(1))
    assert list(prediction.features) == ["c3", "c4", "c5", "p3", "p4", "p5"]
    for name, feature in prediction.features.items():
        stride = 2 ** int(name[1])
        assert feature.shape[-2:] == (HEIGHT // stride, WIDTH // stride)
    assert prediction.strides == (8, 16, 32)
    assert prediction.sizes == ((16, 20, 1), (8, 10, 1), (4, 5, 1))
    assert prediction.raw["box"].shape == (1, 420, 64)
    assert prediction.raw["cls"].shape == (1, 420, len(CLASSES))
    head = detector.network.model[-1]
    for level, name in enumerate(("p3", "p4", "p5")):
        again = head.cv3[level](prediction.features[name]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(again, prediction.levels("cls")[level])


def test_train_mode_gives_the_same_kind_of_output(detector: Any) -> None:
    kept = {name: value.clone() for name, value in detector.state_dict().items()}
    a, b = detector.eval()(images()), detector.train()(images())
    detector.eval().load_state_dict(kept)
    assert {n: v.shape for n, v in a.raw.items()} == {n: v.shape for n, v in b.raw.items()}
    assert (a.sizes, a.strides, a.geometry) == (b.sizes, b.strides, b.geometry)


def test_every_norm_is_found_and_folded(detector: Any) -> None:
    tapped = TappedDetector(detector)
    assert len(detector.norms()) == sum(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
    assert tapped.folded == len(detector.norms())
    assert detector.norms()[0].eps == 1e-3


def test_geometry_tells_what_mimic_may_compare() -> None:
    nano, other = small(CLASSES), small(CLASSES, "yolo11n")
    images = torch.rand(1, 3, 64, 64)
    assert nano(images).geometry == other(images).geometry
    assert nano(images).sizes == other(images).sizes


def test_sides_must_divide(detector: Any) -> None:
    with pytest.raises(InputError, match="expected an image size that 32 divides, got 128x150"):
        detector(torch.rand(1, 3, 128, 150))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "yolov5n"}, r"architecture: expected one of \['yolov8n', .*'yolo11x'\], got 'yolov5n'"),
        ({"width": 0}, "width: expected a positive factor or null, got 0"),
        ({"depth": float("nan")}, "depth: expected a positive factor or null, got nan"),
        ({"image_size": (64,)}, r"image_size: expected \(height, width\), got \[64\]"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(CLASSES, **change)


def test_width_and_depth_scale_the_network() -> None:
    def count(**scales: float) -> int:
        return sum(p.numel() for p in UltralyticsDetector(CLASSES, "yolov8n", **scales).parameters())

    own = count()
    assert count(width=0.25, depth=0.33) == own
    assert count(width=0.125) < own < count(depth=1.0)


@pytest.mark.parametrize("architecture", ["yolov8s", "yolo11s"])
def test_other_scales_load_the_packages_own_weights(architecture: str) -> None:
    from ultralytics.nn.tasks import DetectionModel

    theirs = DetectionModel(f"{architecture}.yaml", nc=2, verbose=False)
    UltralyticsDetector(("a", "b"), architecture).network.load_state_dict(theirs.state_dict())


# Weights from files


def save_as_the_package_does(detector: Any, path: Path) -> None:
    """A checkpoint as its trainer leaves one: the module itself, in half precision."""
    import copy

    torch.save({"epoch": -1, "model": copy.deepcopy(detector.network).half(), "ema": None, "train_args": {"lr0": 0.01}}, path)


@pytest.mark.parametrize("architecture", ["yolov8n", "yolo11n"])
def test_checkpoint_of_the_package(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = small(("cat", "dog"), architecture)
    save_as_the_package_does(given, tmp_path / "best.pt")
    found = pretrained(partial(small, architecture=architecture), weights=str(tmp_path / "best.pt"))
    assert found.spec.classes == ("cat", "dog")
    assert next(found.parameters()).dtype == torch.float32
    for name, tensor in given.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor.half().to(tensor.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_state_dict_and_names(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    given = small(("cat", "dog"))
    path = tmp_path / f"state{suffix}"
    (torch.save if suffix == ".pt" else save_file)(given.network.state_dict(), path)
    (tmp_path / "a.names").write_text("cat\ndog\n")
    for classes in (["cat", "dog"], File(str(tmp_path / "a.names")), str(tmp_path / "a.names")):
        found = pretrained(small, classes, File(str(path)))
        assert found.spec.classes == ("cat", "dog")
        assert fingerprint(found) == fingerprint(given)
    with pytest.raises(InputError, match=rf"classes: expected class names, found none in \S+state{suffix}; give classes="):
        pretrained(small, weights=str(path))


def test_names_given_go_before_those_of_the_checkpoint(tmp_path: Path) -> None:
    save_as_the_package_does(small(("cat", "dog")), tmp_path / "best.pt")
    assert pretrained(small, ("x", "y"), str(tmp_path / "best.pt")).spec.classes == ("x", "y")
    with pytest.raises(InputError, match=r"classes: expected 2 names for the head in \S+best\.pt, found 3"):
        pretrained(small, ("x", "y", "z"), str(tmp_path / "best.pt"))
    with pytest.raises(InputError, match=r"classes: expected names that differ, found \['x'\] more than once"):
        pretrained(small, ("x", "x"), str(tmp_path / "best.pt"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(small(("a", "b"), "yolo11n").network.state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        InputError, match=r"a\.pt: expected the weights of yolov8n, found others: \d+ tensors differ, the first is model\."
    ):
        pretrained(small, ("a", "b"), str(tmp_path / "a.pt"))
    with pytest.raises(InputError, match=r"none\.pt: expected a file, found none"):
        pretrained(small, ("a", "b"), str(tmp_path / "none.pt"))


def test_random_start_depends_on_the_seed_alone() -> None:
    first = fingerprint(pretrained(small, ("a", "b"), seed=3))
    torch.rand(7)
    state = torch.get_rng_state()
    assert fingerprint(pretrained(small, ("a", "b"), seed=3)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(pretrained(small, ("a", "b"), seed=4)) != first
    with pytest.raises(InputError, match="classes: expected class names, found none; give classes="):
        pretrained(small)


def test_the_network_goes_back_into_the_package() -> None:
    detector = small(("cat", "dog"))
    assert detector.network.names == {0: "cat", 1: "dog"}
    assert type(detector.network).__module__ == "ultralytics.nn.tasks"
    assert {n.removeprefix("network.") for n in detector.state_dict()} == set(detector.network.state_dict())
