from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkd.detectors.checkpoint import fingerprint, fingerprint_file, load_checkpoint, read_description

Command = Callable[..., Any]
KEYS = {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "images"}


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def distilled(images: Path, tiny_distill: list[str], command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student by the default losses on the inverted images, scored on them."""
    folder = tmp_path_factory.mktemp("distilled")
    command("distill", *tiny_distill, f"data.root={images}", f"val.root={images}", "out=run", cwd=folder).ok()
    return folder / "run"


def test_results_have_the_documented_keys(distilled: Path, images: Path) -> None:
    found = results(distilled)
    assert set(found) >= KEYS
    assert found["images"] == 6
    assert found["scored_on"] == str(images)
    assert 0 <= found["ap"] <= found["ap50"] <= 1
    assert found["student"] == "student.safetensors"
    assert found["steps"] == 4


def test_the_result_is_a_student_alone_that_was_trained(distilled: Path, detectors: Path) -> None:
    assert {p.name for p in distilled.iterdir()} == {"config.yaml", "results.json", "student.safetensors"}
    student, before = load_checkpoint(distilled / "student.safetensors"), load_checkpoint(detectors / "student.safetensors")
    assert student.spec == before.spec
    assert student.state_dict().keys() == before.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(student.state_dict().values(), before.state_dict().values()))
    about = read_description(distilled / "student.safetensors")["about"]
    assert about["teacher_sha256"] == fingerprint(load_checkpoint(detectors / "teacher.safetensors"))
    assert about["scores"]["ap50"] == results(distilled)["ap50"]


def test_results_say_what_was_typed_and_link_student_set_and_scores_by_hash(distilled: Path, images: Path) -> None:
    found = results(distilled)
    assert found["student_sha256"] == fingerprint(load_checkpoint(distilled / "student.safetensors"))
    assert found["student_sha256"] == fingerprint_file(distilled / "student.safetensors")
    assert found["data_sha256"] == hashlib.sha256((images / "manifest.json").read_bytes()).hexdigest()
    assert read_description(distilled / "student.safetensors")["about"]["data_sha256"] == found["data_sha256"]
    assert len(found["scored_sha256"]) == 64
    assert found["command"].startswith("python -m detkd.distill teacher=checkpoint ")
    assert found["versions"]["torch"] == torch.__version__


def test_the_same_command_makes_the_same_student(
    distilled: Path, images: Path, tiny_distill: list[str], command: Command, tmp_path: Path
) -> None:
    command("distill", *tiny_distill, f"data.root={images}", "out=run", cwd=tmp_path).ok()
    again, first = (load_checkpoint(folder / "student.safetensors") for folder in (tmp_path / "run", distilled))
    assert fingerprint(again) == fingerprint(first)


def test_another_run_in_the_same_folder_is_refused(
    distilled: Path, images: Path, tiny_distill: list[str], command: Command, tmp_path: Path, files_of: Callable[[Path], Any]
) -> None:
    shutil.copytree(distilled, tmp_path / "run")
    before = files_of(tmp_path / "run")
    data = [f"data.root={images}", f"val.root={images}", "out=run"]
    message = command("distill", *tiny_distill, *data, "optimizer.lr=0.5", "ema_decay=0.5", cwd=tmp_path).error()
    assert "['ema_decay', 'optimizer.lr']" in message
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    "options",
    [
        ["labels=real", "loss=[detection]"],
        ["labels=teacher", "loss=[detection]", "label_threshold=0.001"],
        ["labels=real", "loss=[detection,mimic]", "augmentation=mosaic", "optimizer=sgd", "ema_decay=null"],
        ["data.holdout=0.34", "select=holdout", "data.length=7"],
    ],
    ids=["real", "teacher", "both", "holdout"],
)
def test_other_labels_losses_and_ways_to_choose(
    options: list[str], images: Path, tiny_distill: list[str], command: Command, tmp_path: Path
) -> None:
    command("distill", *tiny_distill, f"data.root={images}", *options, "out=run", cwd=tmp_path).ok()
    assert load_checkpoint(tmp_path / "run" / "student.safetensors")
    found = results(tmp_path / "run")
    assert set(found) >= KEYS
    assert found["images"] == (2 if "select=holdout" in options else None)


def test_multi_scale(images: Path, tiny_distill: list[str], command: Command, tmp_path: Path) -> None:
    scales = ["augmentation=multi_scale", "augmentation.multi_scale.minimum=32", "augmentation.multi_scale.maximum=64"]
    command("distill", *tiny_distill, f"data.root={images}", *scales, "out=run", cwd=tmp_path).ok()


def test_a_plain_folder_of_images_serves_for_mimicry_and_teacher_labels(
    images: Path, tiny_distill: list[str], command: Command, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(path, tmp_path / "photos" / f"{number}.png")
    for name, options in (("both", []), ("mimic", ["labels=none", "loss=[mimic]"]), ("teacher", ["loss=[detection]"])):
        command("distill", *tiny_distill, "data.root=photos", *options, f"out={name}", cwd=tmp_path).ok()
        assert results(tmp_path / name)["ap50"] is None
    message = command(
        "distill", *tiny_distill, "data.root=photos", "labels=real", "loss=[detection]", "out=real", cwd=tmp_path
    ).error()
    assert "labels=real: expected annotations" in message
    assert not (tmp_path / "real" / "student.safetensors").exists()


def test_without_data_root_the_latest_set_of_the_teacher_or_the_command_that_makes_one(
    images: Path, tiny_distill: list[str], detectors: Path, command: Command, tmp_path: Path
) -> None:
    message = command("distill", *tiny_distill, "out=run", cwd=tmp_path).error()
    assert "data.root" in message
    assert "python -m detkd.invert" in message
    assert not list(tmp_path.rglob("*.*"))
    shutil.copytree(images, tmp_path / "runs" / "invert" / "mine")
    command("distill", *tiny_distill, "out=run", cwd=tmp_path).ok()
    assert "root: runs/invert/mine" in (tmp_path / "run" / "config.yaml").read_text()
    other = [f"teacher.path={detectors / 'other.safetensors'}", "out=other"]
    assert "python -m detkd.invert" in command("distill", *tiny_distill, *other, cwd=tmp_path).error()


def test_a_student_from_scratch_takes_the_classes_and_the_heads_of_the_teacher(
    images: Path, tiny_distill: list[str], command: Command, tmp_path: Path
) -> None:
    scratch = [a for a in tiny_distill if not a.startswith("student")]
    anchors = "[[6,6],[9,9],[12,12],[20,20],[28,28],[40,40]]"
    detector = "student.detector={image_size: [32, 32], resize: stretch, width: 0.0625, anchors: " + anchors + "}"
    command("distill", *scratch, "student=yolov3_tiny", detector, f"data.root={images}", "out=run", cwd=tmp_path).ok()
    assert load_checkpoint(tmp_path / "run" / "student.safetensors").spec.classes == ("circle", "square", "cross")


def test_supervised_training_has_no_teacher(images: Path, tiny_distill: list[str], command: Command, tmp_path: Path) -> None:
    student = [a for a in tiny_distill if not a.startswith("teacher")]
    supervised = [
        "teacher=none",
        "loss=[detection]",
        "labels=real",
        f"data.root={images}",
        "logger=csv",
        "trainer.log_every_n_steps=1",
    ]
    command("distill", *student, *supervised, "out=run", cwd=tmp_path).ok()
    assert results(tmp_path / "run")["teacher_sha256"] is None
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "train/detection", "train/detection/box"} <= set(header.split(","))
    assert len(rows) == 4


@pytest.mark.slow
def test_wandb_offline_keeps_the_run_on_disk(images: Path, tiny_distill: list[str], python: Command, tmp_path: Path) -> None:
    logger = ["logger=wandb", "logger.offline=true", "trainer.log_every_n_steps=1"]
    python("distill", *tiny_distill, *logger, f"data.root={images}", f"val.root={images}", "out=run", cwd=tmp_path).ok()
    run = tmp_path / "run"
    (kept,) = (run / "wandb").glob("offline-run-*/*.wandb")
    assert b"report-" in kept.read_bytes()  # the artifact
    assert list((run / "wandb").glob("offline-run-*/files/media/images/student*.png"))
    assert list((run / "wandb").glob("offline-run-*/files/media/table/results*.table.json"))
    assert (run / "report" / "report.html").is_file()
    assert "train/loss" in (run / "metrics.csv").read_text().splitlines()[0]
    assert load_checkpoint(tmp_path / "run" / "student.safetensors")


@pytest.mark.slow
def test_wandb_without_a_login_is_an_error_before_anything_is_written(
    images: Path, tiny_distill: list[str], python: Command, tmp_path: Path
) -> None:
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_MODE": "online", "WANDB_API_KEY": ""}
    message = python(
        "distill", *tiny_distill, "logger=wandb", f"data.root={images}", "out=run", cwd=tmp_path, env=nobody
    ).error()
    assert re.search(r"logger=wandb: expected a login .*logger\.offline=true", message)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_wandb_offline_gets_the_pictures_of_an_inversion(tiny: list[str], python: Command, tmp_path: Path) -> None:
    logger = [
        "logger=wandb",
        "logger.offline=true",
        "callbacks=invert",
        "callbacks.progress=null",
        "callbacks.pictures.every=2",
    ]
    python("invert", *tiny, *logger, "out=run", cwd=tmp_path).ok()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/*.png"))
    python("invert", *tiny, *logger, "out=run", cwd=tmp_path).ok()  # what the logger left is no obstacle
