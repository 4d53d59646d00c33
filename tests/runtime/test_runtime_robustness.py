from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.coco import CocoDataset
from detkd.errors import InputError
from detkd.evaluation.coco import Scores
from detkd.evaluation.corruptions import CORRUPTIONS
from detkd.evaluation.robustness import Robustness
from detkd.runtime.robustness import Benchmark, benchmark_of, check_extent, read_runs, run_key, write_run
from detkd.runtime.scored_run import data_facts

SCORES = Scores(0.25, 0.5, 0.0, None, 0.1, 1.0, 3, {"square": 0.25})


def test_the_benchmark_is_that_of_the_paper_unless_told_otherwise() -> None:
    assert benchmark_of(OmegaConf.create({})) == Benchmark()
    assert len(Benchmark().runs) == 76
    assert Benchmark().runs[:3] == [("clean", 0), ("gaussian_noise", 1), ("gaussian_noise", 2)]
    asked = benchmark_of(OmegaConf.create({"names": ["snow", "fog"], "severities": [5, 1], "seed": 3}))
    assert asked == Benchmark(("snow", "fog"), (5, 1), 3)
    assert asked.runs == [("clean", 0), ("snow", 5), ("snow", 1), ("fog", 5), ("fog", 1)]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"names": []}, r"corruptions\.names: expected a list of some of gaussian_noise, .*, found \[\]"),
        ({"severities": []}, r"corruptions\.severities: expected a list of some of 1, 2, 3, 4, 5, found \[\]"),
        ({"names": None}, r"corruptions\.names: expected a list .* found None"),
        ({"names": "fog"}, r"corruptions\.names: expected a list .* found fog"),
        ({"names": ["fog", "rain"]}, r"corruptions\.names: expected some of gaussian_noise, .*, found 'rain'"),
        ({"names": [["fog"]]}, r"corruptions\.names: expected some of "),
        ({"names": ["fog", "snow", "fog"]}, r"corruptions\.names: expected each once, found 'fog' twice"),
        ({"severities": [1, 0]}, r"corruptions\.severities: expected some of 1, 2, 3, 4, 5, found 0"),
        ({"severities": [True]}, r"corruptions\.severities: expected some of .* found True"),
        ({"severities": [2.5]}, r"corruptions\.severities: expected some of .* found 2.5"),
        ({"seed": "a"}, r"corruptions\.seed: expected a whole number, found 'a'"),
        ({"name": ["fog"]}, r"corruptions: expected some of the keys names, severities, seed, found"),
        ("fog", "corruptions: expected some of the keys"),
    ],
)
def test_mistakes_are_named(node: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        benchmark_of(OmegaConf.create({"corruptions": node}).corruptions)


@pytest.mark.parametrize(
    ("names", "severities", "message"),
    [
        (["contrast", "fog"], [5, 1], None),
        (["fog", "contrast", "snow"], [1, 2, 5], None),
        (["fog"], [1, 5], "run: expected all .* found less: corruptions.names lacks contrast; choose another out=DIR"),
        (["fog", "contrast"], [1, 2], "found less: corruptions.severities lacks 5; choose"),
        (["snow"], [2], "names lacks fog, contrast; corruptions.severities lacks 1, 5; choose"),
    ],
)
def test_results_are_replaced_by_those_of_no_fewer_runs(
    tmp_path: Path, names: list[str], severities: list[int], message: str | None
) -> None:
    folder, asked = tmp_path / "run", Benchmark(tuple(names), tuple(severities))
    folder.mkdir()
    check_extent(folder, asked)  # without results any will do
    done = Robustness(SCORES, {name: dict.fromkeys((1, 5), SCORES) for name in ("fog", "contrast")})
    (folder / "results.json").write_text(json.dumps(done.to_dict()))
    with nullcontext() if message is None else pytest.raises(InputError, match=message):
        check_extent(folder, asked)


@pytest.mark.parametrize("content", ["", "{}", '{"corruptions": {"fog": 1}}', '{"corruptions": null}'])
def test_results_without_corruptions(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json: expected"):
        check_extent(tmp_path, Benchmark())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), "navy").save(folder / f"{number}.png")
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 4, 16, 16]} for n in range(3)]
    names = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(3)]
    content = {"images": names, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def key_of(folder: Path, detector: Any, seed: int = 0, **more: Any) -> dict[str, Any]:
    spec = detector.spec
    opened = CocoDataset(folder, classes=spec.classes, image_size=spec.image_size, resize=spec.resize, **more)
    return run_key(detector, len(opened), data_facts(opened, spec.classes), seed)


def test_what_makes_another_run(images: Path, tiny_detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    detector = tiny_detector(classes=("square", "cross"))
    first = key_of(images, detector)
    assert first == key_of(images, detector)
    assert json.loads(json.dumps(first)) == first

    def differing(other: dict[str, Any]) -> set[str]:
        return {k for k in first if first[k] != other[k]}

    assert differing(key_of(images, tiny_detector(classes=("square", "cross")))) == {"detector"}  # other weights
    assert differing(key_of(images, detector, seed=1)) == {"seed"}
    assert differing(key_of(images, detector, length=2)) == {"data"}
    Image.effect_noise((40, 30), 50).convert("RGB").save(images / "1.png")
    assert differing(key_of(images, detector)) == {"data"}
    first = key_of(images, detector)
    content = json.loads((images / "instances.json").read_text())
    content["annotations"][0]["area"] = 100  # decides whether a box is small
    (images / "instances.json").write_text(json.dumps(content))
    assert differing(key_of(images, detector)) == {"data"}
    first = key_of(images, detector)
    monkeypatch.setattr(np, "__version__", "1.0")  # draws other numbers
    assert differing(key_of(images, detector)) == {"versions"}
    detector.nms_iou = 0.7
    assert differing(key_of(images, detector)) == {"detector", "versions"}


def test_runs_are_read_back_and_those_of_another_are_refused(tmp_path: Path) -> None:
    key = {"detector": {"weights_sha256": "a"}, "seed": 0}
    assert read_runs(tmp_path, key) == {}
    runs = [("clean", 0), ("fog", 3), ("snow", 1)]
    for run in runs:
        write_run(tmp_path, key, run, SCORES)
    (tmp_path / "corruptions" / ".fog_4.json.0.tmp").write_text("{")  # of a run that was cut off
    assert read_runs(tmp_path, key) == dict.fromkeys(runs, SCORES)
    with pytest.raises(InputError, match=r"clean\.json: .* found another's \(detector\.weights_sha256: 'a' there, 'b' here\)"):
        read_runs(tmp_path, {"detector": {"weights_sha256": "b"}, "seed": 0})
    with pytest.raises(InputError, match=r"seed: 0 there, 1 here"):
        read_runs(tmp_path, key | {"seed": 1})


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{}",
        '{"key": {}, "corruption": "fog", "severity": 3}',
        '{"key": {}, "corruption": "fog", "severity": 2, "scores": {"ap": 0.1, "ap50": 0.2, "images": 3}}',
        '{"key": {}, "corruption": "fog", "severity": 3, "scores": {"ap": null, "ap50": 0.2, "images": 3}}',
        '{"key": {}, "corruption": "fog", "severity": 3, "scores": {"ap": "<b>", "ap50": 0.2, "images": 3}}',
        '{"key": {}, "corruption": "fog", "severity": 3, "scores": {"ap": 0.1, "ap50": NaN, "images": 3}}',
        '{"key": {}, "corruption": "fog", "severity": 3, "scores": {"ap": 0.1, "ap50": 0.2, "images": 3, "per_class": [1]}}',
        '{"key": {}, "corruption": "fog", "severity": 3, "scores": {"ap": 0.1, "ap50": 0.2, "images": 3, "per_class": {"a": 2.0}}}',
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "corruptions").mkdir()
    (tmp_path / "corruptions" / "fog_3.json").write_text(damage)
    with pytest.raises(InputError, match=r"fog_3\.json: expected"):
        read_runs(tmp_path, {})


def test_the_experiment_lists_all_of_them() -> None:
    node = OmegaConf.load(Path(__file__).parents[2] / "conf" / "experiment" / "robustness.yaml")
    assert benchmark_of(node["corruptions"]) == Benchmark()
    assert list(node["corruptions"]["names"]) == list(CORRUPTIONS)
