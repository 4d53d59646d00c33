from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.detectors.torchvision import FCOS, RetinaNet
from detkd.errors import InputError
from detkd.evaluation.feature_comparison import Compared, compare_features
from detkd.evaluation.feature_distance import channel_distance
from detkd.evaluation.gradient_norm import gradient_norms
from detkd.losses.regions import object_masks
from detkd.structures import Target

CLASSES = ("a", "b", "c")
SMALL: dict[str, Any] = {"classes": CLASSES, "image_size": (64, 64), "backbone": "resnet18", "width": 0.125, "channels": 48}


def tiny(seed: int, classes: tuple[str, ...] = CLASSES, size: int = 64, width: float = 0.125) -> Any:
    torch.manual_seed(seed)
    return yolov3_tiny(classes, (size, size), width=width).eval()


def samples(count: int = 3, labelled: bool = True) -> list[tuple[torch.Tensor, Target | None]]:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0], [20.0, 20.0, 60.0, 50.0]])
    targets: list[Target] = [{"boxes": boxes[:n], "labels": torch.arange(n)} for n in (2, 0, 1)]
    images = torch.rand(count, 3, 64, 64, generator=generator)
    return [(image, targets[i % 3] if labelled else None) for i, image in enumerate(images)]


def test_students_side_by_side_are_what_each_is_alone() -> None:
    teacher, students = tiny(0), {"a": tiny(1), "b": tiny(2)}
    both = compare_features(students, teacher, samples(), pictures=2)
    assert both.images == 3
    assert [len(target["boxes"]) for _, target in both.shown] == [2, 0]
    for name, student in students.items():
        alone = compare_features({name: student}, teacher, samples()).students[name]
        found = both.students[name]
        assert found.level == alone.level == "p4"
        assert list(found.gradients) == ["p4", "p5"]
        assert all(torch.equal(a, b) for a, b in zip(found.distance, alone.distance))
        assert [h.shape for h in found.heat] == [(4, 4)] * 2
        assert alone.heat == []


class Elsewhere(torch.Tensor):
    """Stands for a tensor on an accelerator: what is made from it is one too, until it is brought to the CPU."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs)
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def tensors(compared: Compared) -> list[torch.Tensor]:
    """All that a comparison holds."""
    of = compared.students.values()
    sums = [part for one in of for region in (one.distance, *one.gradients.values()) for part in region]
    shown = [part for image, target in compared.shown for part in (image, target["boxes"], target["labels"])]
    return [*sums, *(heat for one in of for heat in one.heat), *shown]


def test_all_that_comes_back_is_on_the_cpu() -> None:
    given: Any = [(image.as_subclass(Elsewhere), target) for image, target in samples(2)]
    assert type(given[0][0] * 2) is Elsewhere
    found = tensors(compare_features({"a": tiny(1)}, tiny(0), given, pictures=1))
    assert len(found) == 3 + 2 * 3 + 1 + 3
    assert {type(tensor) for tensor in found} == {torch.Tensor}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; the CPU test above sees to the rest")
def test_detectors_on_a_gpu() -> None:
    given: Any = [(i.cuda(), {k: v.cuda() for k, v in t.items()} if t else t) for i, t in samples(2)]
    found = compare_features({"a": tiny(1).cuda()}, tiny(0).cuda(), given, pictures=1)
    assert {tensor.device.type for tensor in tensors(found)} == {"cpu"}
    expected = compare_features({"a": tiny(1)}, tiny(0), samples(2), pictures=1)
    for a, b in zip(tensors(found), tensors(expected)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_the_parts_are_those_of_their_functions() -> None:
    teacher, student = tiny(0), tiny(1)
    ((image, target),) = samples(1)
    assert target is not None
    found = compare_features({"a": student}, teacher, [(image, target)], level="p5", box_side=14.0, pictures=1).students["a"]
    masks = object_masks([target], [(4, 4), (2, 2)], [16, 32], 14.0)
    prediction, norms = gradient_norms(student, image[None], [target])
    expected = channel_distance(prediction.features["p5"], teacher(image[None]).features["p5"], masks[1])
    assert masks[0].any() or masks[1].any()
    for a, b in zip(found.distance, expected):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found.heat[0], norms["p5"][0])
    torch.testing.assert_close(found.gradients["p4"].background[0], norms["p4"][~masks[0]].double().sum())


@pytest.mark.parametrize("make", [RetinaNet, FCOS])
def test_torchvisions_detectors_without_labels(make: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    teacher, student = make(score_threshold=0.001, **SMALL).eval(), make(**SMALL).eval()
    found = compare_features({"a": student}, teacher, samples(2, labelled=False), score_threshold=0.0, pictures=1)
    assert found.students["a"].level == "p3"
    assert len(found.shown[0][1]["boxes"]) > 0  # the teacher's detections
    assert float(found.students["a"].distance.cells[0]) > 0


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(InputError, match="students: expected at least one, found none"):
        compare_features({}, tiny(0), samples())
    with pytest.raises(InputError, match="data: expected at least one image"):
        compare_features({"a": tiny(0)}, tiny(0), [])
    with pytest.raises(InputError, match=r"students: expected the teacher's 3 classes .* found 2 of a"):
        compare_features({"a": tiny(0, ("a", "b"))}, tiny(0), samples())
    with pytest.raises(InputError, match=r"expected one image size .* \(64, 64\) letterbox of a and \(96, 96\) letterbox of b"):
        compare_features({"a": tiny(0), "b": tiny(0, size=96)}, tiny(0), samples())
    with pytest.raises(InputError, match="level: expected maps 'p4' of a and 'p4' of the teacher of one shape"):
        compare_features({"a": tiny(0, width=0.25)}, tiny(0), samples())
