"""Commands with a model of the ultralytics package, where it is and where it is not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = importlib.util.find_spec("ultralytics") is not None
SMALL = ["detector.image_size=[64,64]", "detector.width=0.125"]
QUICK = ["callbacks=none", "logger=none", "trainer.accelerator=cpu"]


@pytest.mark.skipif(HERE, reason="the package ultralytics is installed: its absence cannot be seen")
def test_without_the_package_one_message_says_what_to_install(command: Callable, tmp_path: Path) -> None:
    arguments = ["teacher=yolov8n", "teacher.weights=null", "teacher.classes=[a,b]", "out=set"]
    message = command("invert", *arguments, cwd=tmp_path).error()
    assert "pip install 'detkd[ultralytics]'" in message
    assert "AGPL-3.0" in message
    assert not list((tmp_path / "set").glob("*"))


def test_weights_are_asked_for(command: Callable, tmp_path: Path) -> None:
    assert "teacher.weights: expected a value" in command("invert", "teacher=yolo11n", "out=set", cwd=tmp_path).error()


@pytest.mark.skipif(not HERE, reason="no package ultralytics; pip install 'detkd[ultralytics]'")
def test_inverted_distilled_and_evaluated(command: Callable, tmp_path: Path) -> None:
    import torch

    from detkd.detectors.ultralytics import UltralyticsDetector

    detector = UltralyticsDetector(("cat", "dog"), "yolov8n", (64, 64), width=0.125)
    torch.save({"model": detector.network.half(), "ema": None}, tmp_path / "best.pt")
    teacher = ["teacher=yolov8n", "teacher.weights=best.pt", *(f"teacher.{key}" for key in SMALL)]
    student = ["student=yolo11n", *(f"student.{key}" for key in SMALL)]
    environment = {"YOLO_CONFIG_DIR": str(tmp_path)}
    run = [*teacher, "n_images=2", "batch_size=2", "resolution=64", "iterations=4", "look_every=2", *QUICK, "out=set"]
    command("invert", *run, cwd=tmp_path, env=environment).ok()
    run = [
        *teacher,
        *student,
        "data.root=set",
        "batch_size=2",
        "steps=2",
        "warmup_steps=1",
        "val_every=1",
        *QUICK,
        "out=student",
    ]
    command("distill", *run, cwd=tmp_path, env=environment).ok()
    run = ["teacher=checkpoint", "teacher.path=student/student.safetensors", "data.root=set", "device=cpu", "out=scores"]
    command("evaluate", *run, cwd=tmp_path, env=environment).ok()
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["images"] == 2
