"""The scores of real detectors on real images, against pycocotools called directly on the files."""

from __future__ import annotations

import contextlib
import io
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkd.data.coco import CocoDataset
from detkd.detectors.darknet.detector import from_cfg
from detkd.detectors.pretrained import pretrained
from detkd.evaluation.coco import detect, score
from detkd.evaluation.errors import error_curves
from detkd.evaluation.matching import make_scene
from detkd.evaluation.tide import tide

# of tidecv 1.0.1 on the same boxes (TIDE.BOX, crowds as ignore regions, classes without a box left out): points, and how many
TIDECV = {
    "yolo-fastest-1.1": (
        {"Cls": 6.066, "Loc": 9.928, "Both": 1.363, "Dupe": 0.051, "Bkg": 1.812, "Miss": 4.305, "FP": 23.701, "FN": 15.748},
        {"Cls": 1620, "Loc": 2284, "Miss": 258},
    ),
    "yolo-fastest-1.1-xl": (
        {"Cls": 5.996, "Loc": 9.976, "Both": 0.908, "Dupe": 0.046, "Bkg": 2.388, "Miss": 5.722, "FP": 20.001, "FN": 18.688},
        {"Cls": 1399, "Loc": 2011, "Miss": 229},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_scores_and_curves_equal_pycocotools_on_coco(name: str, shared: Path) -> None:
    weights, root = shared / "weights", shared / "data" / "coco-val164"
    classes = (weights / "coco.names").read_text().split("\n")[:80]
    detector = pretrained(partial(from_cfg, weights / f"{name}.cfg"), classes, str(weights / f"{name}.weights"))
    data = CocoDataset(root, classes=detector.spec.classes, image_size=detector.spec.image_size, resize=detector.spec.resize)
    detections, truths = detect(detector, data, 16), [data.ground_truth(i) for i in range(len(data))]
    scores = score(detections, truths, detector.spec.classes)

    # the boxes of the json, and detections whose sizes are those that score() sees
    results = []
    for number, found in enumerate(detections):
        xywh = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], 1)
        for box, label, value in zip(xywh.tolist(), found["labels"].tolist(), found["scores"].tolist()):
            entry = {"image_id": data.image_id(number), "category_id": data.category_ids[label], "bbox": box, "score": value}
            results.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads((root / "instances.json").read_text())
        truth.createIndex()
        reference = COCOeval(truth, truth.loadRes(results), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    expected = reference.stats[:6].tolist()
    assert 0.05 < expected[0] < 0.5
    found_scores = [scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large]
    assert found_scores == pytest.approx(expected, abs=1e-6)

    scene = make_scene(detections, truths)
    curves = error_curves(scene, detector.spec.classes, data.supercategories)
    assert len(curves.groups) == 12
    assert curves.average_precision()[:2, 0] == pytest.approx([scores.ap75, scores.ap50], abs=1e-6)
    result = tide(scene)
    assert result.ap50 == pytest.approx(scores.ap50, abs=1e-6)
    points, counts = TIDECV[name]
    assert {kind: 100 * value for kind, value in result.dap.items()} == pytest.approx(points, abs=0.05)
    # boxes of the run's detections.json, which the toolbox saw, are rounded to 1/1000 pixel
    assert {kind: result.counts[kind] for kind in counts} == pytest.approx(counts, abs=3)
