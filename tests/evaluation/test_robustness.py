from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detkd.assets import builtin
from detkd.data.annotations import Annotations, GroundTruth, Record
from detkd.data.coco import CocoDataset
from detkd.data.dataset import DetectionDataset
from detkd.data.scenes import write_coco
from detkd.errors import InputError
from detkd.evaluation.coco import Scores, detect, score
from detkd.evaluation.corruptions import CORRUPTIONS, corrupt
from detkd.evaluation.robustness import CorruptedDataset, Robustness


def scores(ap: float | None, ap50: float | None = None) -> Scores:
    return Scores(ap, ap if ap50 is None else ap50, 0.0, None, 0.1, 0.2, 7, {"a|b": ap})


def result(clean: float = 0.4) -> Robustness:
    return Robustness(
        scores(clean, 0.5),
        {"fog": {1: scores(0.3, 0.4), 5: scores(0.1, 0.2)}, "snow": {1: scores(0.2, 0.25), 5: scores(0.0, 0.0)}},
    )


def test_mpc_is_the_mean_of_means_and_rpc_its_share_of_the_clean_score() -> None:
    of = result()
    assert of.severities == (1, 5)
    assert of.under("fog") == pytest.approx(0.2)
    assert of.under("snow", "ap50") == pytest.approx(0.125)
    assert of.mpc() == pytest.approx(0.15)
    assert of.rpc() == pytest.approx(0.375)
    assert of.mpc("ap50") == pytest.approx(0.2125)
    assert of.rpc("ap50") == pytest.approx(0.425)
    assert result(clean=0.0).rpc() is None
    with pytest.raises(ValueError, match="images with boxes"):
        Robustness(scores(0.1), {"fog": {1: scores(None)}}).mpc()


def test_json_csv_and_markdown_say_the_same() -> None:
    of = result()
    content = json.loads(json.dumps(of.to_dict(), allow_nan=False))
    assert content["ap"] == 0.4
    assert content["images"] == 7
    assert content["mpc"] == of.mpc()
    assert content["rpc50"] == of.rpc("ap50")
    assert content["corruptions"]["fog"]["severities"]["5"]["ap"] == 0.1
    rows = list(csv.DictReader(io.StringIO(of.csv())))
    assert [(row["corruption"], row["severity"], row["ap"], row["ap_small"]) for row in rows] == [
        ("clean", "0", "0.4", ""),
        ("fog", "1", "0.3", ""),
        ("fog", "5", "0.1", ""),
        ("snow", "1", "0.2", ""),
        ("snow", "5", "0.0", ""),
    ]
    text = of.markdown()
    assert "| AP | 0.400 | 0.150 | 37.5 % |" in text
    assert "| AP50 | severity 1 | severity 5 | mean |" in text
    assert "| fog | 0.300 | 0.100 | 0.200 |" in text
    assert "| AP | 0.000 | 0.150 | - |" in result(clean=0.0).markdown()


def dataset(folder: Path, sizes: list[tuple[int, int]], **more: Any) -> DetectionDataset:
    """Images of noise; the second is grey."""
    records = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = folder / f"{number}.png"
        (Image.fromarray(pixels).convert("L") if number == 1 else Image.fromarray(pixels)).save(path)
        none = torch.zeros(0, dtype=torch.bool)
        truth = GroundTruth(
            boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), iscrowd=none, ignore=none, area=torch.zeros(0)
        )
        records.append(Record(10 + number, path, more.get("size", (height, width)), truth))
    return DetectionDataset(folder, Annotations(("a",), {0: 1}, records), image_size=(48, 64), resize="letterbox")


def test_images_are_corrupted_in_their_own_size_and_placed_as_before(tmp_path: Path) -> None:
    clean = dataset(tmp_path, [(40, 80), (70, 33)])
    corrupted = CorruptedDataset(clean, "contrast", 4, seed=3)
    assert len(corrupted) == 2
    for index in range(2):
        one, before = corrupted[index], clean[index]
        assert {k: one[k] for k in ("image_id", "original_size", "placement")} == {  # type: ignore[literal-required]
            k: before[k]  # type: ignore[literal-required]
            for k in ("image_id", "original_size", "placement")
        }
        assert one["target"] is None
        assert one["image"].shape == before["image"].shape
        assert one["image"].dtype == torch.uint8
        assert not torch.equal(one["image"], before["image"])
    grey = corrupted[1]["image"]
    assert torch.equal(grey[0], grey[1])


def test_order_and_place_in_the_set_do_not_matter(tmp_path: Path) -> None:
    whole = CorruptedDataset(dataset(tmp_path, [(40, 80), (70, 33)]), "snow", 2)
    later = whole[1]["image"]
    records = [whole.dataset.records[1]]
    alone = DetectionDataset(tmp_path, Annotations(("a",), {0: 1}, records), image_size=(48, 64), resize="letterbox")
    assert torch.equal(CorruptedDataset(alone, "snow", 2)[0]["image"], later)
    assert not torch.equal(CorruptedDataset(alone, "snow", 2, seed=1)[0]["image"], later)
    original = np.asarray(alone.original(0))
    stretched = DetectionDataset(tmp_path, Annotations(("a",), {0: 1}, records), image_size=(70, 33), resize="stretch")
    expected = corrupt(original, "snow", 2, seed=0, image_id=11)
    assert np.array_equal(CorruptedDataset(stretched, "snow", 2)[0]["image"].permute(1, 2, 0).numpy(), expected)


def test_the_same_detections_with_and_without_workers(tmp_path: Path, tiny_detector: Any) -> None:
    images = CorruptedDataset(dataset(tmp_path, [(40, 80), (70, 33), (50, 50)]), "glass_blur", 5)
    torch.manual_seed(0)
    detector = tiny_detector(image_size=(48, 64), score_threshold=0.0)
    here, there = (detect(detector, images, 2, num_workers=workers) for workers in (0, 2))
    assert sum(len(d["boxes"]) for d in here) > 0
    for one, other in zip(here, there):
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    images = dataset(tmp_path, [(40, 80)], size=(41, 80))
    with pytest.raises(InputError, match=r"corruptions\.names: expected some of gaussian_noise.*found 'rain'"):
        CorruptedDataset(images, "rain", 1)
    with pytest.raises(InputError, match=r"corruptions\.severities: .*found 6"):
        CorruptedDataset(images, "fog", 6)
    with pytest.raises(InputError, match=r"0\.png: expected 80 x 41 pixels as its annotations say, found 80 x 40"):
        CorruptedDataset(images, "fog", 1)[0]


@pytest.mark.slow
def test_ap_falls_with_severity_on_average(tmp_path: Path) -> None:
    detector = builtin()
    folder = write_coco(tmp_path / "scenes", 24, 5, "main", (96, 96))
    scenes = CocoDataset(
        folder, classes=detector.spec.classes, image_size=detector.spec.image_size, resize=detector.spec.resize
    )
    truths = [scenes.ground_truth(i) for i in range(len(scenes))]
    clean = score(detect(detector, scenes), truths, detector.spec.classes)
    severities = (1, 3, 5)
    corrupted = {
        name: {s: score(detect(detector, CorruptedDataset(scenes, name, s)), truths, detector.spec.classes) for s in severities}
        for name in CORRUPTIONS
    }
    means = [np.mean([by_severity[s].ap for by_severity in corrupted.values()]) for s in severities]
    assert clean.ap is not None
    assert clean.ap > means[0] > means[1] > means[2]
    assert 0.1 < (Robustness(clean, corrupted).rpc() or 0) < 0.9
    worse = [name for name, by_severity in corrupted.items() if (by_severity[5].ap or 0) < clean.ap]
    assert len(worse) >= 13, worse
