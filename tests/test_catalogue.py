"""What every detector and every loss term must hold, driven by tests/catalogue.py."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkd.detectors.checkpoint import ARCHITECTURES, fingerprint, load_checkpoint, read_description, save_checkpoint
from detkd.detectors.folding import TappedDetector
from detkd.detectors.norms import Norm, Observed
from detkd.detectors.protocol import Detector
from detkd.losses.bn_stats import bn_stats_kl
from detkd.losses.step import Step


def _load_catalogue() -> ModuleType:
    # in importlib mode no test folder is on sys.path
    spec = importlib.util.spec_from_file_location("detkd_tests_catalogue", Path(__file__).parent / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


catalogue = _load_catalogue()
target, images_for, loss_of = catalogue.target, catalogue.images_for, catalogue.loss_of
BOXES = [target((8, 10, 40, 50, 2), (30, 5, 60, 30, 0)), target((4, 4, 20, 24, 1))]
NO_BOXES = [target(), target()]


@pytest.fixture(scope="module", params=catalogue.DETECTORS)
def name(request: pytest.FixtureRequest) -> str:
    catalogue.need(request.param)
    return request.param


@pytest.fixture(scope="module")
def detector(name: str) -> Any:
    return catalogue.build(name)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def plain_statistics(detector: Any, images: Tensor) -> list[Observed]:
    """What the norms of an unfolded detector see, by forward hooks: the reference."""
    seen: dict[str, list[Tensor]] = {}

    def listen(norm: Norm) -> Any:
        return norm.module.register_forward_pre_hook(lambda _, x: seen.setdefault(norm.name, []).append(x[0]))

    norms = detector.norms()
    handles = [listen(norm) for norm in norms]
    detector(images)
    for handle in handles:
        handle.remove()
    inputs = {name: torch.cat([x.transpose(0, 1).flatten(1) for x in xs], dim=1) for name, xs in seen.items()}  # (C, n)
    return [
        Observed(norm, inputs[norm.name].mean(1), inputs[norm.name].var(1, correction=0))
        for norm in norms
        if norm.name in inputs
    ]


def test_is_a_detector(detector: Any) -> None:
    assert isinstance(detector, Detector)
    json.dumps(detector.arguments())
    prediction = detector(images_for(detector))
    sites = sum(h * w * a for h, w, a in prediction.sizes)
    assert all(value.shape[:2] == (2, sites) for value in prediction.raw.values())
    assert list(prediction.strides) == sorted(prediction.strides)
    assert len(prediction.strides) == len(prediction.sizes)
    assert prediction.image_size == detector.spec.image_size
    assert prediction.features


@pytest.mark.parametrize("targets", [BOXES, [BOXES[0], target()], NO_BOXES], ids=["boxes", "one_empty", "empty"])
def test_loss_is_finite_and_reaches_the_pixels(detector: Any, targets: Any) -> None:
    images = images_for(detector).requires_grad_()
    losses = loss_of(detector, detector(images), targets)
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in losses.values())
    assert all(torch.isfinite(value) and value >= 0 for value in losses.values()), losses
    (gradient,) = torch.autograd.grad(total(losses), images, allow_unused=True)
    if targets is NO_BOXES and gradient is None:
        assert total(losses) == 0  # SSD mines negatives by the count of positives
        return
    assert torch.isfinite(gradient).all()
    assert gradient[0].abs().max() > 0 or total(losses) == 0


@pytest.mark.parametrize(
    "flat", [(20, 8, 20, 30, 1), (5, 40, 25, 40, 0), (64, 64, 64, 64, 2)], ids=["width", "height", "corner"]
)
def test_a_box_without_area_is_no_object(detector: Any, flat: Any) -> None:
    prediction = detector(images_for(detector))
    pairs = [
        ([target((8, 10, 40, 50, 2)), target()], [target((8, 10, 40, 50, 2), flat), target()]),
        ([target((8, 10, 40, 50, 2)), target()], [target((8, 10, 40, 50, 2)), target(flat)]),
        (NO_BOXES, [target(flat), target()]),
    ]
    for without, with_flat in pairs:
        expected, found = loss_of(detector, prediction, without), loss_of(detector, prediction, with_flat)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_loss_with_a_box_without_area_has_a_finite_gradient(detector: Any) -> None:
    images = images_for(detector, 1).requires_grad_()
    losses = loss_of(detector, detector(images), [target((8, 10, 40, 50, 2), (20, 8, 20, 30, 1))])
    (gradient,) = torch.autograd.grad(total(losses), images)
    assert torch.isfinite(gradient).all()


def test_eval_mode_leaves_everything_as_it_was(detector: Any) -> None:
    before, modes = copy.deepcopy(detector.state_dict()), [m.training for m in detector.modules()]
    random_state = torch.get_rng_state()
    prediction = detector(images_for(detector))
    loss_of(detector, prediction, BOXES)
    detector.decode(prediction)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert modes == [m.training for m in detector.modules()]
    assert torch.equal(random_state, torch.get_rng_state())


def test_batch_of_two_is_two_batches_of_one(detector: Any) -> None:
    images = images_for(detector)
    both = detector(images)
    for i in range(2):
        alone, taken = detector(images[i : i + 1]), both.image(i)
        torch.testing.assert_close(taken.raw, alone.raw, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(taken.features, alone.features, rtol=1e-3, atol=1e-4)


def test_decode_is_sorted_and_inside_the_image(detector: Any) -> None:
    detections = detector.decode(detector(images_for(detector)))
    height, width = detector.spec.image_size
    assert len(detections) == 2
    for found in detections:
        assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"]) > 3
        assert (found["scores"].diff() <= 0).all()
        assert 0 < found["scores"].min() <= found["scores"].max() <= 1
        assert found["labels"].dtype == torch.int64
        assert 0 <= found["labels"].min() <= found["labels"].max() < len(detector.spec.classes)
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert (found["boxes"][:, 2:] >= found["boxes"][:, :2]).all()
        assert not found["boxes"].requires_grad
        assert not found["scores"].requires_grad


def test_checkpoint_brings_the_same_detector_back(detector: Any, tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    save_checkpoint(detector, path)
    own = None  # one of the package is built by load_checkpoint, another by its owner
    if type(detector).__name__ not in ARCHITECTURES:
        own = type(detector)(**read_description(path)["arguments"])
    again = load_checkpoint(path, own).eval()
    images = images_for(detector)
    with torch.no_grad():
        torch.testing.assert_close(again(images).raw, detector(images).raw, rtol=0, atol=0)
    assert again.spec == detector.spec
    assert again.arguments() == detector.arguments()
    assert fingerprint(again) == fingerprint(detector)


def test_fingerprint_is_stable_and_tells_weights_apart(detector: Any) -> None:
    changed = copy.deepcopy(detector)
    assert fingerprint(changed) == fingerprint(detector)
    weight = next(changed.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    assert fingerprint(changed) != fingerprint(detector)


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
def test_tapped_detector_sees_what_hooks_see(detector: Any, name: str, fold: bool) -> None:
    images = images_for(detector)
    tapped = TappedDetector(detector, fold=fold)
    with torch.no_grad():
        prediction, observed = tapped.forward(images)
        expected = plain_statistics(detector, images)
        torch.testing.assert_close(prediction.raw, detector(images).raw, rtol=1e-3, atol=1e-4)
    assert [o.norm.name for o in observed] == [o.norm.name for o in expected]
    assert len(observed) == len(detector.norms())
    for ours, theirs in zip(observed, expected):
        deviation = (theirs.var + theirs.norm.var + theirs.norm.eps).sqrt()
        assert ((ours.mean - theirs.mean).abs() <= 1e-3 * deviation).all(), ours.norm.name
        assert ((ours.var - theirs.var).abs() <= 1e-3 * deviation.square()).all(), ours.norm.name
    assert (tapped.folded > 0) == (fold and catalogue.DETECTORS[name].folds)
    if fold:
        assert tapped.folded >= 0.9 * len(observed)


def test_gradient_through_tapped_statistics_is_the_plain_one(detector: Any) -> None:
    # in double precision, where two ways through a deep network can be told from a wrong one
    precise = copy.deepcopy(detector).double()
    images = images_for(detector).double().requires_grad_()
    _, observed = TappedDetector(precise).forward(images)
    expected = plain_statistics(precise, images)
    gradients = []
    for statistics in (observed, expected):
        loss = torch.stack([bn_stats_kl(o).double() for o in statistics]).sum()
        gradients.append(torch.autograd.grad(loss, images)[0])
    assert gradients[1].norm() > 0
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm()


def inversion_step(detector: Any, images: Tensor, targets: Any, student: Any = None) -> Step:
    """A step that every term can read: tapped statistics of the detector, and a student where one is given."""
    prediction, observed = TappedDetector(detector).forward(images)
    seen = None if student is None else student(images)
    return Step(images, targets, detector, prediction, student, seen, clean_images=images, statistics=observed)


@pytest.mark.parametrize("targets", [BOXES, NO_BOXES], ids=["boxes", "empty"])
@pytest.mark.parametrize(("term_name", "kind"), catalogue.tries())
def test_term_gives_finite_scalars_with_a_gradient(term_name: str, kind: str, targets: Any) -> None:
    teacher, student = catalogue.build(kind), catalogue.build(kind, seed=1) if term_name in catalogue.STUDENT_TERMS else None
    term: Any = catalogue.TERMS[term_name]()
    term.setup(student, teacher)
    assert isinstance(term, nn.Module)
    assert isinstance(term.pools_batch, bool)
    images = images_for(teacher).requires_grad_()
    values = term(inversion_step(teacher, images, targets, student))
    assert values
    assert all(v.ndim == 0 and v.dtype == torch.float32 and torch.isfinite(v) and v >= 0 for v in values.values()), values
    (gradient,) = torch.autograd.grad(total(values), images)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0 or (targets is NO_BOXES and total(values) == 0)  # careg looks at objects alone


@pytest.mark.parametrize(("term_name", "kind"), [t for t in catalogue.tries() if t[0] not in catalogue.TELLS_APART])
def test_term_does_not_grow_with_the_batch(term_name: str, kind: str) -> None:
    teacher, student = catalogue.build(kind), catalogue.build(kind, seed=1) if term_name in catalogue.STUDENT_TERMS else None
    term: Any = catalogue.TERMS[term_name]()
    term.setup(student, teacher)
    image = images_for(teacher, 1)
    with torch.no_grad():
        once = term(inversion_step(teacher, image, BOXES[:1], student))
        twice = term(inversion_step(teacher, image.repeat(2, 1, 1, 1), BOXES[:1] * 2, student))
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["double", "yolov3_tiny"])
def test_mimic_leaves_the_teacher_alone(kind: str) -> None:
    teacher, student = catalogue.build(kind), catalogue.build(kind, seed=1)
    images = images_for(teacher)
    step = Step(images, None, teacher, teacher(images), student, student(images))
    total(catalogue.TERMS["mimic"]()(step)).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
