from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkd.boxes import xyxy_to_xywh
from detkd.errors import InputError
from detkd.evaluation.coco import Ap50, Scores, ap50, coco_detections, detect, score

CLASSES = ("ant", "bee", "cat", "dog", "eel")
NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def box(x1: float, y1: float, x2: float, y2: float, label: int, value: float | None = None) -> dict[str, Any]:
    target = {"boxes": torch.tensor([[x1, y1, x2, y2]]), "labels": torch.tensor([label])}
    return target if value is None else {**target, "scores": torch.tensor([value])}


def problem(images: int = 30, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Detections that partly hit; crowds, all sizes, classes without truth or without detections, empty images, boxes on integer grids."""
    g = torch.Generator().manual_seed(seed)
    detections, truths = [], []
    for _ in range(images):
        n, m = int(torch.randint(0, 7, (1,), generator=g)), int(torch.randint(0, 9, (1,), generator=g))
        corner = torch.randint(0, 300, (n, 2), generator=g).float()
        side = torch.randint(8, 200, (n, 2), generator=g).float()
        boxes = torch.cat([corner, corner + side], 1)
        labels = torch.randint(0, 4, (n,), generator=g)  # no eel in the truth
        crowd = torch.rand(n, generator=g) < 0.1
        truths.append({"boxes": boxes, "labels": labels, "iscrowd": crowd, "area": side.prod(1) * 0.8})
        source = torch.randint(0, n, (m,), generator=g) if n else torch.zeros(0, dtype=torch.int64)
        moved = boxes[source] + torch.randint(-12, 12, (len(source), 4), generator=g)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 4)
        right = torch.rand(len(source), generator=g) < 0.8
        guess = torch.where(right, labels[source], torch.randint(0, 5, (len(source),), generator=g))
        values = torch.rand(len(source), generator=g).round(decimals=2)  # ties
        detections.append({"boxes": moved, "labels": guess, "scores": values})
    return detections, truths


def pycocotools_directly(detections: list[Any], truths: list[Any], label: int | None = None) -> list[float]:
    annotations = []
    for image, truth in enumerate(truths):
        for xywh, category, crowd, area in zip(
            xyxy_to_xywh(truth["boxes"]).tolist(), *(truth[k].tolist() for k in ("labels", "iscrowd", "area"))
        ):
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": xywh}
            annotations.append({**annotation, "iscrowd": int(crowd), "area": area})
    results = [
        {"image_id": image, "category_id": category, "bbox": xywh, "score": value}
        for image, found in enumerate(detections)
        for xywh, category, value in zip(
            xyxy_to_xywh(found["boxes"]).tolist(), found["labels"].tolist(), found["scores"].tolist()
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truths))],
            "categories": [{"id": i} for i in range(len(CLASSES))],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        if label is not None:
            evaluation.params.catIds = [label]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_pycocotools_called_directly(seed: int) -> None:
    detections, truths = problem(seed=seed)
    scores = score(detections, truths, CLASSES)
    stats = pycocotools_directly(detections, truths)
    assert 0.1 < stats[0] < 0.9
    assert [scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large] == pytest.approx(
        stats[:6], abs=1e-6
    )
    for label, name in enumerate(CLASSES[:4]):
        assert scores.per_class[name] == pytest.approx(pycocotools_directly(detections, truths, label)[0], abs=1e-6)
    assert scores.per_class["eel"] is None
    assert scores.images == 30
    no_crowds = [{k: t[k][~t["iscrowd"]] for k in ("boxes", "labels")} for t in truths]
    plain = [{**t, "iscrowd": torch.zeros(len(t["labels"])), "area": torch.ones(len(t["labels"]))} for t in no_crowds]
    at_half, expected = ap50(detections, no_crowds, CLASSES), pycocotools_directly(detections, plain)
    assert at_half.value == pytest.approx(expected[1], abs=1e-6)
    assert at_half.per_class.keys() == set(CLASSES[:4])
    assert sum(at_half.per_class.values()) / 4 == pytest.approx(at_half.value, abs=1e-6)


def test_known_values_and_keys() -> None:
    truths = [{**box(0, 0, 10, 10, 0)}, {**box(0, 0, 50, 50, 1)}]
    detections = [box(0, 0, 10, 10, 0, 0.9), box(0, 0, 50, 30, 1, 0.8)]  # IoU 1 and .6
    scores = score(detections, truths, ("a", "b"))
    assert scores.to_dict().keys() == {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "images", "per_class"}
    assert scores.ap50 == pytest.approx(1)
    assert scores.ap75 == pytest.approx(0.5)
    assert scores.ap == pytest.approx((1 + 0.3) / 2)
    assert scores.per_class == pytest.approx({"a": 1, "b": 0.3})
    assert scores.ap_small == pytest.approx(1)
    assert scores.ap_large is None
    assert json.loads(json.dumps(scores.to_dict())) == scores.to_dict()


def test_more_than_a_hundred_detections_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    found = {
        "boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(150, 1),
        "labels": torch.zeros(150).long(),
        "scores": torch.rand(150),
    }
    assert score([found], [box(0, 0, 9, 9, 0)], ("a",)).ap50 == pytest.approx(1)
    assert not [w for w in recwarn if "detections" in str(w.message)]


def test_classes_the_data_lacks_are_no_false_alarms() -> None:
    truths = [box(0, 0, 10, 10, 2)]
    alone = score([box(0, 0, 10, 10, 2, 0.5)], truths, CLASSES)
    two = {k: torch.cat([box(0, 0, 10, 10, 2, 0.5)[k], box(0, 0, 9, 9, 4, 0.9)[k]]) for k in ("boxes", "labels", "scores")}
    assert score([two], truths, CLASSES) == alone
    assert alone.ap == pytest.approx(1)
    assert [name for name, ap in alone.per_class.items() if ap is not None] == ["cat"]


def test_empty_images_and_empty_detections() -> None:
    empty = {**NONE, "scores": torch.zeros(0)}
    assert score([empty, empty], [box(0, 0, 9, 9, 0), NONE], ("a",)).ap == 0
    nothing = score([box(0, 0, 9, 9, 0, 0.5)], [NONE], ("a",))
    assert nothing == Scores(None, None, None, None, None, None, 1, {"a": None})
    with pytest.raises(InputError, match="at least one image"):
        score([], [], ("a",))
    with pytest.raises(InputError, match="at least one target box in 1 images"):
        ap50([empty], [NONE])
    assert ap50([empty], [box(0, 0, 9, 9, 0)]) == Ap50(0.0, small=0.0, medium=None, large=None, per_class={"0": 0.0})


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="1 detections and 0 ground truths"):
        score([box(0, 0, 9, 9, 0, 0.5)], [], ("a",))
    with pytest.raises(ValueError, match="1 detections and 0 targets"):
        ap50([box(0, 0, 9, 9, 0, 0.5)], [])
    with pytest.raises(InputError, match=r"labels from 0 to 0 \(1 classes\), found \[3\]"):
        score([box(0, 0, 9, 9, 0, 0.5)], [box(0, 0, 9, 9, 3)], ("a",))
    with pytest.raises(ValueError, match="one image id for each of 1 images, got 2"):
        coco_detections([box(0, 0, 9, 9, 0, 0.5)], [1, 2], [1])


def test_tables() -> None:
    scores = Scores(0.5, 0.75, None, None, 0.25, 1.0, 7, {"a|b": 0.125, "c": None})
    assert scores.markdown().splitlines() == [
        "| ap | ap50 | ap75 | ap_small | ap_medium | ap_large | images |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 0.500 | 0.750 | - | - | 0.250 | 1.000 | 7 |",
        "",
        "| class | ap |",
        "| --- | --- |",
        r"| a\|b | 0.125 |",
        "| c | - |",
    ]
    assert scores.table("mine").row_count == 9
    assert scores.rows()[0] == ("ap", "0.500")


def test_detect_runs_in_eval_mode_and_undoes_the_placement(doubles: Any) -> None:
    class HalfSize:
        def undo_xyxy(self, boxes: torch.Tensor, original_size: tuple[int, int]) -> torch.Tensor:
            assert original_size == (128, 128)
            return boxes * 2

    class Placed(doubles.Squares):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "original_size": (128, 128), "placement": HalfSize()}

    torch.manual_seed(0)
    detector, data = doubles.TinyDetector(score_threshold=0.008).train(), Placed(n=5)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    found = detect(detector, data, batch_size=2)
    assert detector.training
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    detector.eval()
    with torch.no_grad():
        expected = detector.decode(detector(data.images.float() / 255))
    assert sum(len(d["scores"]) for d in expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["boxes"], 2 * other["boxes"])
        assert torch.equal(one["labels"], other["labels"])


def test_detect_needs_images(doubles: Any) -> None:
    with pytest.raises(InputError, match="at least one image"):
        detect(doubles.TinyDetector(), doubles.Squares(n=0))


def test_perfect_detections_of_a_dataset_score_one(doubles: Any) -> None:
    data = doubles.Squares(n=6)
    truths = [data.ground_truth(i) for i in range(6)]
    assert score([{**t, "scores": torch.ones(1)} for t in truths], truths, ("r", "g", "b")).ap == pytest.approx(1)


def test_coco_detections() -> None:
    found = {
        "boxes": torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 1.0]]),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.25, 0.125]),
    }
    first = {"image_id": 42, "category_id": 18, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.25}
    second = {"image_id": 42, "category_id": 3, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.125}
    assert coco_detections([found], [42], [3, 18]) == [first, second]
    assert coco_detections([found], [42], {1: 18}) == [first]
    assert coco_detections([{**NONE, "scores": torch.zeros(0)}], [42], [3, 18]) == []


def test_ground_truth_against_itself_on_real_annotations(shared: Path) -> None:
    data = json.loads((shared / "data" / "coco-val164" / "instances.json").read_text())
    ids = {category["id"]: label for label, category in enumerate(data["categories"])}
    of_image: dict[int, list[Any]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    truths = []
    for of_one in of_image.values():
        xywh = torch.tensor([a["bbox"] for a in of_one]).reshape(-1, 4)
        truth = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
            "labels": torch.tensor([ids[a["category_id"]] for a in of_one]).long(),
        }
        truths.append(
            {
                **truth,
                "iscrowd": torch.tensor([a["iscrowd"] for a in of_one]),
                "area": torch.tensor([a["area"] for a in of_one]),
            }
        )
    perfect = [{"boxes": t["boxes"], "labels": t["labels"], "scores": torch.ones(len(t["labels"]))} for t in truths]
    scores = score(perfect, truths, [category["name"] for category in data["categories"]])
    assert scores.images == 164
    assert scores.ap == pytest.approx(1, abs=0.01)


def ignoring(target: dict[str, Any], *flags: bool) -> dict[str, Any]:
    return {**target, "ignore": torch.tensor(flags)}


def together(*targets: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.cat([target[key] for target in targets]) for key in targets[0]}


def test_a_difficult_object_is_neither_hit_nor_miss() -> None:
    truth = ignoring(together(box(0, 0, 10, 10, 0), box(50, 50, 90, 90, 0)), False, True)
    hit, sure = box(0, 0, 10, 10, 0, 0.5), box(50, 50, 90, 90, 0, 0.9)
    again, beside = box(50, 50, 90, 85, 0, 0.8), box(50, 50, 90, 60, 0, 0.7)
    for found in (hit, together(hit, sure), together(sure, again, hit)):
        # missed, found, and found twice over
        assert score([found], [truth], ("a",)).ap50 == pytest.approx(1)
        assert ap50([found], [truth], ("a",)).value == pytest.approx(1)
    # counted, a miss costs half of the recall and a find that comes first half of the precision
    plain = {key: value for key, value in truth.items() if key != "ignore"}
    assert score([hit], [plain], ("a",)).ap50 == pytest.approx(51 / 101)
    assert score([together(sure, hit)], [box(0, 0, 10, 10, 0)], ("a",)).ap50 == pytest.approx(0.5)
    # what overlaps it by less (IoU 1/4, though wholly inside, as it would have to be in a crowd) is a false alarm
    assert score([together(beside, hit)], [truth], ("a",)).ap50 == pytest.approx(0.5)
    crowd = {**plain, "iscrowd": torch.tensor([False, True])}
    assert score([together(beside, hit)], [crowd], ("a",)).ap50 == pytest.approx(1)
    # and so is one of another class
    other = together(truth, ignoring(box(0, 0, 5, 5, 1), False))
    wrong = together(hit, box(50, 50, 90, 90, 1, 0.9), box(0, 0, 5, 5, 1, 0.4))
    assert score([wrong], [other], ("a", "b")).ap50 == pytest.approx((1 + 0.5) / 2)


def test_a_class_of_difficult_objects_alone_is_not_scored() -> None:
    truth = ignoring(together(box(0, 0, 10, 10, 0), box(20, 20, 30, 30, 1)), False, True)
    scores = score([box(0, 0, 10, 10, 0, 0.9)], [truth], ("a", "b"))
    assert scores.per_class == {"a": pytest.approx(1), "b": None}
    assert score([box(0, 0, 10, 10, 0, 0.9)], [ignoring(box(0, 0, 10, 10, 0), True)], ("a",)).ap is None


def ap50_by_hand(detections: list[Any], truths: list[Any], label: int) -> float:
    """AP50 of a class in plain Python: best score first, each box that counts once, boxes to ignore as often as they are met."""
    found: list[tuple[float, bool]] = []
    for detection, truth in zip(detections, truths):
        of_class = [i for i, other in enumerate(truth["labels"].tolist()) if other == label]
        order = sorted(range(len(detection["scores"])), key=lambda i: -float(detection["scores"][i]))
        free = {i for i in of_class if not truth["ignore"][i]}
        for i in [i for i in order if detection["labels"][i] == label]:
            overlap = {t: iou(detection["boxes"][i].tolist(), truth["boxes"][t].tolist()) for t in of_class}
            best = max(free, key=lambda t: overlap[t], default=None)
            if best is not None and overlap[best] >= 0.5:
                free.remove(best)
                found.append((float(detection["scores"][i]), True))
            elif not any(truth["ignore"][t] and overlap[t] >= 0.5 for t in of_class):
                found.append((float(detection["scores"][i]), False))
    positives = sum(int((t["labels"][~t["ignore"]] == label).sum()) for t in truths)
    found.sort(key=lambda entry: -entry[0])
    hits, points = 0, []
    for rank, (_, hit) in enumerate(found, start=1):
        hits += hit
        points.append((hits / positives, hits / rank))
    return sum(max((p for r, p in points if r >= k / 100 - 1e-12), default=0.0) for k in range(101)) / 101


def iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_boxes_to_ignore_against_a_reference(seed: int) -> None:
    detections, truths = problem(seed=seed)
    g = torch.Generator().manual_seed(seed)
    truths = [
        {**t, "iscrowd": torch.zeros_like(t["iscrowd"]), "ignore": torch.rand(len(t["labels"]), generator=g) < 0.4}
        for t in truths
    ]
    # scores without ties: equal ones may be put in any order
    for detection in detections:
        detection["scores"] = torch.rand(len(detection["scores"]), generator=g)
    found = ap50(detections, truths, CLASSES).per_class
    assert found.keys() == set(CLASSES[:4])
    for label, name in enumerate(CLASSES[:4]):
        assert found[name] == pytest.approx(ap50_by_hand(detections, truths, label), abs=1e-6)
    counted = ap50(detections, [{k: v for k, v in t.items() if k != "ignore"} for t in truths], CLASSES)
    assert any(abs(counted.per_class[name] - found[name]) > 0.01 for name in found)
