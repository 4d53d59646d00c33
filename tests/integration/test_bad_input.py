from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Command = Callable[..., Any]
Files = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def refused(command: Command, tmp_path: Path, files_of: Files) -> Callable[..., str]:
    """Run a command that must fail with one message and write no file; return the message. ``out`` is new."""

    def run(name: str, *arguments: Any) -> str:
        before = files_of(tmp_path)
        message = command(name, *map(str, arguments), "out=out", cwd=tmp_path).error()
        assert files_of(tmp_path) == before
        return message

    return run


def darknet_teacher(tmp_path: Path, weights: Path) -> list[str]:
    """A one-convolution YOLO as `teacher=darknet`."""
    cfg = """
        [net]
        width=32
        height=32
        channels=3
        [convolutional]
        batch_normalize=1
        filters=8
        size=3
        stride=8
        pad=1
        activation=leaky
        [convolutional]
        filters=8
        size=1
        stride=1
        pad=1
        activation=linear
        [yolo]
        mask=0
        anchors=10,10
        classes=3
        num=1
    """
    (tmp_path / "net.cfg").write_text("\n".join(line.strip() for line in cfg.splitlines()))
    (tmp_path / "net.names").write_text("circle\nsquare\ncross\n")
    return [
        "teacher=darknet",
        "teacher.detector.cfg=net.cfg",
        "teacher.classes.name=net.names",
        f"teacher.weights={weights}",
        "n_images=2",
        "batch_size=2",
        "resolution=32",
        "iterations=1",
        "callbacks=none",
        "logger=none",
        "trainer.accelerator=cpu",
    ]


def test_missing_weights(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused("invert", *darknet_teacher(tmp_path, Path("gone.weights")))
    assert re.match(r"error: gone\.weights: expected a file, found none \(looked at ", message)


# major, minor, revision, images seen
HEADER = struct.pack("<iiiq", 0, 2, 5, 0)
# bias, scale, mean, variance and kernels of the first convolution; biases and kernels of the second
VALUES = 4 * 8 + 8 * 27 + 8 + 8 * 8


@pytest.mark.parametrize(
    "content",
    [HEADER[:10], HEADER + bytes(4 * VALUES - 4), HEADER + bytes(4 * VALUES + 4), HEADER + bytes(4 * VALUES - 1)],
    ids=["header", "truncated", "oversized", "odd"],
)
def test_weights_of_another_size(content: bytes, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "net.weights").write_bytes(content)
    message = refused("invert", *darknet_teacher(tmp_path, Path("net.weights")))
    assert message.startswith("error: net.weights: expected ")
    assert "found " in message


def test_weights_of_the_right_size_are_read(command: Command, tmp_path: Path) -> None:
    (tmp_path / "net.weights").write_bytes(HEADER + bytes(4 * VALUES))
    command("invert", *darknet_teacher(tmp_path, Path("net.weights")), "out=out", cwd=tmp_path).ok()


@pytest.mark.parametrize("name", ["missing", "foreign", "pickle", "truncated", "text"])
def test_a_checkpoint_that_is_not_ours(
    name: str, refused: Callable[..., str], tiny: list[str], detectors: Path, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.write_text, (tmp_path / "ran", "code"))

    path = tmp_path / f"{name}.safetensors"
    if name == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif name == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif name == "truncated":
        path.write_bytes((detectors / "teacher.safetensors").read_bytes()[:-100])
    elif name == "text":
        path.write_text("hello")
    message = refused("invert", *tiny, f"teacher.path={path}")
    assert message.startswith(f"error: {path}: expected a ")
    assert "found" in message
    assert not (tmp_path / "ran").exists()


def test_a_missing_mandatory_value(refused: Callable[..., str]) -> None:
    message = refused("invert", "teacher=checkpoint")
    assert message.startswith("error: teacher.path: expected a value on the command line, like teacher.path=FILE")


@pytest.mark.parametrize(
    ("command_name", "argument", "named"),
    [("invert", "n_imagse=3", "n_imagse"), ("distill", "optimiser=sgd", "optimiser"), ("evaluate", "data.rot=x", "rot")],
)
def test_an_unknown_key_is_an_error_of_hydra_that_names_it(
    command_name: str, argument: str, named: str, command: Command, tmp_path: Path
) -> None:
    done = command(command_name, argument, cwd=tmp_path)
    assert done.status != 0
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n_images=0"], "n_images"),
        (["iterations=0"], "stages.iterations: expected at least 1, got 0"),
        (["loss.bn_stats.form=l3"], "bn_stats.form: expected one of ['kl', 'l2'], got 'l3'"),
        (["loss.tv.of=both"], "tv.of: expected 'augmented' or 'clean', got 'both'"),
        (["layout.size=[0.5,0.1]"], "layout.size: expected [smallest, largest]"),
        (["layout.boxes=[3,1]"], "layout.boxes"),
        (["+trainer.max_steps=3"], "trainer.max_steps: an inversion has no steps of Lightning's"),
        (["trainer.strategy=ddp"], "trainer.strategy: expected auto"),
        (["trainer.precision=bf16-true"], "trainer.precision: expected 32-true, bf16-mixed or 16-mixed, found 'bf16-true'"),
        (["layout=from_labels"], "layout.annotations: expected a value on the command line"),
        (["layout=from_labels", "layout.annotations=nowhere.json"], "nowhere.json"),
        (["sampling=false_positives"], "sampling"),
        (["layout.classes=[]"], "layout.classes"),
        (["layout.classes=[dragon]"], "dragon"),
        (["accept.teacher_score=7"], "accept.teacher_score: expected a value from 0 to 1, or null, got 7"),
        (["accept.attempts=0"], "accept.attempts: expected at least 1, got 0"),
        (["accept.verifier_score=0.5"], "accept.verifier_score: expected a verifier"),
        (["warm_start=bank", "warm_start.batches=0"], "warm_start.batches: expected at least 1, got 0"),
        (["sampling=false_positives", "sampling.every=0"], "sampling.every"),
        (["image=pixels", "+stages.0.optimizer.weight_decay=0.1"], "stages.0.optimizer.weight_decay"),
        (["image=pixels", "stages.0.optimizer._target_=torch.optim.AdamW"], "image=pixels, which it makes black, found 0.01"),
        (["loss.tv.weight=0", "loss.bn_stats.weight=0", "loss.detection.weight=0"], "loss: expected at least one term"),
        (["teacher=none", "~teacher.path"], "teacher: expected a detector, like teacher=scenes, found none"),
        (["+loss.bn_stats.layer_weights.nope=1"], "bn_stats.layer_weights: expected names of norms"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_values_out_of_range(arguments: list[str], message: str, refused: Callable[..., str], tiny: list[str]) -> None:
    if "teacher=none" in arguments:
        arguments = ["teacher=none"]
        tiny = [a for a in tiny if not a.startswith("teacher")]
    assert message in refused("invert", *tiny, *arguments)


def test_a_verifier_of_other_classes_is_found_out_before_the_work(
    refused: Callable[..., str], tiny: list[str], detectors: Path
) -> None:
    message = refused("invert", *tiny, "verifier=checkpoint", f"verifier.path={detectors / 'classes.safetensors'}")
    assert (
        "verifier: expected a detector that knows the teacher's classes, found one without ['cross']; its 3 classes are"
        in message
    )


def test_a_teacher_without_statistics_is_inverted_with_the_other_terms(command: Command, tmp_path: Path) -> None:
    weights = tmp_path / "net.weights"
    arguments = darknet_teacher(tmp_path, weights)
    (tmp_path / "net.cfg").write_text((tmp_path / "net.cfg").read_text().replace("batch_normalize=1\n", ""))
    weights.write_bytes(HEADER + bytes(4 * (VALUES - 3 * 8)))
    small = ["n_images=2", "batch_size=2", "resolution=64", "iterations=2", "callbacks=none", "logger=none", "out=out"]
    done = command("invert", *arguments, *small, "trainer.accelerator=cpu", cwd=tmp_path).ok()
    assert "stores no statistics (it has no BatchNorm layers): loss term bn_stats is left out" in done.stderr


def test_a_loss_that_is_not_finite_names_term_and_iteration(command: Command, tiny: list[str], tmp_path: Path) -> None:
    stages = "stages=[{resolution: 32, iterations: 20, optimizer: {_target_: torch.optim.SGD, lr: 1e30}, final_lr: 1.0}]"
    options = ["image=pyramid", "resolution=null", "iterations=null", "log_every=1", "loss.tv.weight=1e38", stages]
    message = command("invert", *tiny, *options, "out=out", cwd=tmp_path).error()
    assert re.search(r"loss term \w+ is not finite at iteration \d+ of stage 0, batch 0", message)
    assert not (tmp_path / "out" / "results.json").exists()
    assert not (tmp_path / "out" / "instances.json").exists()
    assert not (tmp_path / "out" / "shards").exists()  # given up: a corrected run may have the folder
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_folder_that_holds_something_else(command: Command, tiny: list[str], tmp_path: Path, files_of: Files) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    message = command("invert", *tiny, "out=out", cwd=tmp_path).error()
    assert "expected an empty folder or a store of this run, found ['thesis.tex']" in message
    assert files_of(tmp_path) == {"out/thesis.tex": b"years of work"}


@pytest.fixture
def copied(images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "set"))


def test_a_corrupt_image_stops_an_evaluation_without_scores(command: Command, images: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))[:2]):
        shutil.copy(path, tmp_path / "photos" / f"{number}.png")
    bad = tmp_path / "photos" / "1.png"
    bad.write_bytes(bad.read_bytes()[:200])
    message = command("evaluate", "teacher=scenes", "data.root=photos", "out=out", cwd=tmp_path).error()
    assert message.startswith("error: photos/1.png: expected an image that can be read")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["config.yaml"]


def test_a_corrupt_image_stops_a_distillation_without_a_student(
    command: Command, tiny_distill: list[str], copied: Path, tmp_path: Path
) -> None:
    for path in copied.rglob("*.png"):
        path.write_bytes(b"no image")
    message = command("distill", *tiny_distill, f"data.root={copied}", "out=out", cwd=tmp_path).error()
    assert re.search(r"\.png: expected an image that can be read", message)
    assert not list((tmp_path / "out").glob("student*"))
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("damage", ["incomplete", "changed", "missing"])
def test_a_damaged_set(damage: str, refused: Callable[..., str], tiny_distill: list[str], copied: Path) -> None:
    if damage == "incomplete":
        manifest = copied / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    elif damage == "changed":
        (copied / "instances.json").write_text((copied / "instances.json").read_text().replace("circle", "cicrle"))
    else:
        shutil.rmtree(copied / "shards" / "000001")
    message = refused("distill", *tiny_distill, f"data.root={copied}")
    assert message.startswith(f"error: {copied}")
    assert "expected" in message


def test_a_world_without_its_data_says_which_folder(refused: Callable[..., str], detectors: Path) -> None:
    teacher = f"teacher.path={detectors / 'teacher.safetensors'}"
    message = refused("distill", "+experiment=bccd_student", "+row=images/carla256", teacher, "world.shared=elsewhere")
    assert re.search(r"elsewhere/data/carla256: expected a folder", message)


@pytest.mark.parametrize("root", ["nothing-here", "empty"])
def test_no_images(root: str, refused: Callable[..., str], tiny_distill: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused("distill", *tiny_distill, f"data.root={root}")
    assert message.startswith(f"error: {root}: expected ")


@pytest.mark.parametrize(
    ("student", "message"),
    [("classes", "class 2: teacher 'cross', student 'star'"), ("wide", "number of classes: teacher 3, student 4")],
)
def test_mimicry_between_other_classes(
    student: str,
    message: str,
    refused: Callable[..., str],
    tiny_distill: list[str],
    images: Path,
    detectors: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(images / "shards" / "000000", tmp_path / "photos", ignore=shutil.ignore_patterns("*.json"))
    arguments = [f"student.path={detectors / f'{student}.safetensors'}", "data.root=photos"]
    found = refused("distill", *tiny_distill, *arguments)
    assert f"labels=teacher: expected the same classes, found {message}." in found
    assert "like loss=[feature_l2]" in found
    found = refused("distill", *tiny_distill, *arguments, "loss=[mimic]")
    assert f"loss 'mimic': expected the same classes, found {message}." in found
    assert "like loss=[feature_l2]" in found


def test_between_other_classes_neck_maps_remain(
    command: Command, tiny_distill: list[str], images: Path, detectors: Path, tmp_path: Path
) -> None:
    student = f"student.path={detectors / 'classes.safetensors'}"  # as the messages above advise
    command("distill", *tiny_distill, student, f"data.root={images}", "loss=[feature_l2]", "out=run", cwd=tmp_path).ok()


def test_mimicry_between_other_heads(
    refused: Callable[..., str], tiny_distill: list[str], images: Path, tmp_path: Path
) -> None:
    student = [
        "student=yolov3",
        "student.detector.image_size=[32,32]",
        "student.detector.width=0.03",
        "student.detector.resize=stretch",
    ]
    arguments = [a for a in tiny_distill if not a.startswith("student")]
    found = refused("distill", *arguments, *student, f"data.root={images}")
    assert "levels (height, width, anchors): teacher ((2, 2, 3), (1, 1, 3)), student ((4, 4, 3), (2, 2, 3), (1, 1, 3))" in found


def test_a_mistake_does_not_take_the_folder_from_the_corrected_command(
    command: Command, tiny: list[str], tiny_distill: list[str], images: Path, tmp_path: Path
) -> None:
    command("invert", *tiny, "loss.bn_stats.form=l3", "out=set", cwd=tmp_path).error()
    command("invert", *tiny, "out=set", cwd=tmp_path).ok()
    command("distill", *tiny_distill, "data.root=set", "labels=reel", "out=run", cwd=tmp_path).error()
    command("distill", *tiny_distill, "data.root=set", "out=run", cwd=tmp_path).ok()
