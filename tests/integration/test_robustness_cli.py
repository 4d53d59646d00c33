from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Command = Callable[..., Any]
MADE = {"config.yaml", "detections.json", "results.json", "results.md", "robustness.csv", "robustness.png", "corruptions"}


@pytest.fixture
def arguments(detectors: Path, images: Path) -> list[str]:
    return [
        "+experiment=robustness",
        "teacher=checkpoint",
        f"teacher.path={detectors / 'teacher.safetensors'}",
        f"data.root={images}",
        "corruptions.names=[fog,contrast]",
        "corruptions.severities=[1,5]",
        "data.num_workers=0",
        "out=run",
    ]


def test_a_run_that_was_cut_off_goes_on_with_what_is_missing(
    arguments: list[str], detectors: Path, command: Command, files_of: Callable[[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    done = command("evaluate", *arguments, cwd=tmp_path).ok()
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == MADE
    assert "5/5 contrast 5: AP" in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert set(results) >= {"ap", "ap50", "images", "mpc", "mpc50", "rpc", "rpc50", "detector_sha256", "scored_sha256"}
    assert list(results["corruptions"]) == ["fog", "contrast"]
    assert results["images"] == 6
    with Image.open(folder / "robustness.png") as image:
        assert image.format == "PNG"

    before = files_of(folder)
    for name in ("corruptions/fog_5.json", "results.json", "robustness.csv"):
        (folder / name).unlink()
    again = command("evaluate", *arguments, "data.num_workers=1", "out=run", cwd=tmp_path).ok()
    assert [line.split(":")[0] for line in again.stdout.splitlines() if "/5 " in line] == ["3/5 fog 5"]
    after = files_of(folder)
    assert {name for name in before if before[name] != after[name]} <= {"config.yaml", "results.json"}
    assert json.loads(after["results.json"])["corruptions"] == results["corruptions"]

    (folder / "results.json").unlink()  # cut off before its end
    other = [*arguments, f"teacher.path={detectors / 'other.safetensors'}"]
    message = command("evaluate", *other, cwd=tmp_path).error()
    assert "clean.json: expected a run of this detector, data, seed and numpy" in message
    assert "detector.weights_sha256" in message
    assert "data.images" in command("evaluate", *arguments, "data.length=3", cwd=tmp_path).error()
    assert "seed: 0 there, 1 here" in command("evaluate", *arguments, "corruptions.seed=1", cwd=tmp_path).error()
    assert files_of(folder) == {name: content for name, content in after.items() if name != "results.json"}


def test_a_finished_folder_takes_more_corruptions_and_can_be_analysed(
    arguments: list[str], command: Command, tmp_path: Path
) -> None:
    fog = [*arguments, "corruptions.names=[fog]", "corruptions.severities=[1]"]
    command("evaluate", *fog, cwd=tmp_path).ok()
    done = command("evaluate", *arguments, cwd=tmp_path).ok()
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "/5 " in line] == [
        "3/5 fog 5",
        "4/5 contrast 1",
        "5/5 contrast 5",
    ]
    command("evaluate", *arguments[1:4], "out=plain", cwd=tmp_path).ok()
    folder, plain = tmp_path / "run", tmp_path / "plain"
    assert (folder / "detections.json").read_bytes() == (plain / "detections.json").read_bytes()
    results, other = (json.loads((of / "results.json").read_text()) for of in (folder, plain))
    same = ("ap", "per_class", "data_root", "detector_sha256", "scored_sha256", "images_sha256", "detections_sha256")
    assert {key: results[key] for key in same} == {key: other[key] for key in same}
    assert list(results["per_class"]) == list(other["per_class"])

    (folder / "detections.json").unlink()  # of a version that did not keep them
    done = command("evaluate", *arguments, cwd=tmp_path).ok()
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "/5 " in line] == ["1/5 clean 0"]
    assert (folder / "detections.json").read_bytes() == (plain / "detections.json").read_bytes()
    command("analyze", "run=run", "out=errors", "class_figures=false", cwd=tmp_path).ok()
    errors = json.loads((tmp_path / "errors" / "results.json").read_text())
    assert {key: errors[key] for key in same[3:]} == {key: results[key] for key in same[3:]}


def test_a_finished_folder_takes_no_fewer_corruptions(
    arguments: list[str], command: Command, files_of: Callable[[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    command("evaluate", *arguments, cwd=tmp_path).ok()
    before = files_of(tmp_path / "run")
    message = command("evaluate", *arguments, "corruptions.names=[fog]", cwd=tmp_path).error()
    assert "found less: corruptions.names lacks contrast; choose another out=DIR" in message
    message = command(
        "evaluate", *arguments, "corruptions.names=[fog,snow]", "corruptions.severities=[5]", cwd=tmp_path
    ).error()
    assert "corruptions.names lacks contrast; corruptions.severities lacks 1; choose" in message
    assert files_of(tmp_path / "run") == before


def test_the_folder_of_a_plain_evaluation(arguments: list[str], command: Command, tmp_path: Path) -> None:
    command("evaluate", *arguments[1:4], "out=run", cwd=tmp_path).ok()
    assert "keys that differ: ['corruptions'" in command("evaluate", *arguments, cwd=tmp_path).error()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("corruptions.names=[fog,rain]", "corruptions.names: expected some of gaussian_noise, "),
        ("corruptions.names=[]", "corruptions.names: expected a list of some of"),
        ("corruptions.severities=[6]", "corruptions.severities: expected some of 1, 2, 3, 4, 5, found 6"),
        ("data.root=plain", "plain: expected images with boxes to score corruptions on, found images alone"),
        ("data.root=empty", "found none"),
        ("data.root=boxless", "boxless: expected images with boxes to score corruptions on, found none with a box that counts"),
    ],
)
def test_mistakes(arguments: list[str], command: Command, tmp_path: Path, more: str, message: str) -> None:
    for name in ("plain", "empty", "boxless"):
        (tmp_path / name).mkdir()
    for name in ("plain", "boxless"):
        Image.new("RGB", (40, 40)).save(tmp_path / name / "a.png")
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "empty" / "instances.json").write_text(json.dumps(content))
    content["images"] = [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}]
    (tmp_path / "boxless" / "instances.json").write_text(json.dumps(content))
    assert message in command("evaluate", *arguments, more, cwd=tmp_path).error()
    assert not (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / "corruptions").exists()


def test_a_damaged_image_that_a_worker_meets(arguments: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "set" / "a.jpg")
    content = (tmp_path / "set" / "a.jpg").read_bytes()
    (tmp_path / "set" / "a.jpg").write_bytes(content[: len(content) // 2])
    names = [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 40}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 16, 16]}]
    square = [{"id": 1, "name": "square"}]
    (tmp_path / "set" / "instances.json").write_text(json.dumps({"images": names, "annotations": boxes, "categories": square}))
    message = command("evaluate", *arguments, "data.root=set", "data.num_workers=2", cwd=tmp_path).error()
    assert message.startswith("error: ")
    assert "a.jpg: expected an image that can be read" in message
    assert len(message.splitlines()) == 1
