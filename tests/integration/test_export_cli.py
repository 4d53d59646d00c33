"""`python -m detkd.export` as a user types it. What needs the optional packages is in `make test-export`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkd.detectors.checkpoint import load_checkpoint, save_checkpoint
from detkd.detectors.darknet.detector import DarknetDetector
from detkd.detectors.torchvision import SSD

NO_ONNX = "import sys; sys.modules['onnx'] = None"
DARKNET = ["model.cfg", "model.names", "model.weights"]
BESIDE = ["README.md", "config.yaml", "parity.json", "results.json"]


def student(folder: Path, name: str = "student") -> list[str]:
    return ["student=checkpoint", f"student.path={folder / f'{name}.safetensors'}", "data.length=2"]


def test_darknet_files_with_a_card(command: Callable[..., Any], detectors: Path, tmp_path: Path) -> None:
    done = command("export", *student(detectors), "formats=darknet", "out=it", cwd=tmp_path).ok()
    assert "written: " in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it"]
    assert sorted(p.name for p in (tmp_path / "it").iterdir()) == sorted([*DARKNET, *BESIDE])
    card = (tmp_path / "it/README.md").read_text()
    assert "0 `circle`, 1 `square`, 2 `cross`" in card
    results = json.loads((tmp_path / "it/results.json").read_text())
    assert sorted(results["files"]) == DARKNET
    assert all(digest in card for digest in results["files"].values())
    before = {p.name: p.read_bytes() for p in (tmp_path / "it").iterdir()}
    command("export", *student(detectors), "formats=darknet", "out=it", cwd=tmp_path).ok()
    assert {p.name: p.read_bytes() for p in (tmp_path / "it").iterdir()} == before


def test_an_exported_program_is_checked_on_images_of_a_folder(
    command: Callable[..., Any], detectors: Path, images: Path, tmp_path: Path
) -> None:
    silent = load_checkpoint(detectors / "student.safetensors")  # random heads score below its threshold
    loud = DarknetDetector(**(silent.arguments() | {"score_threshold": 1e-4}))
    loud.load_state_dict(silent.state_dict())
    save_checkpoint(loud, tmp_path / "loud.safetensors")
    given = [*student(tmp_path, "loud"), "formats=[exported_program]", f"data.root={images}", "out=it"]
    done = command("export", *given, cwd=tmp_path).ok()
    assert "model.pt2: boxes " in done.stdout
    assert "model.pt2, as kept, one image: boxes " in done.stdout
    report = json.loads((tmp_path / "it/parity.json").read_text())
    assert (report["images"], report["of"]) == (2, images.name)
    assert {"raw_box", "raw_cls", "raw_obj", "boxes", "scores"} == set(report["files"]["model.pt2"]["outputs"])
    assert report["files"]["model.pt2"]["detections"]["matched"] > 0
    assert "torch.export.load" in (tmp_path / "it/README.md").read_text()


def test_without_the_packages_the_error_has_the_pip_line(command: Callable[..., Any], detectors: Path, tmp_path: Path) -> None:
    done = command("export", *student(detectors), "out=it", cwd=tmp_path, before=NO_ONNX)
    assert "pip install 'detkd[export]'" in done.error()
    assert list((tmp_path / "it").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student=scenes"], "student: expected one with weights, like student=checkpoint student.path=FILE"),
        (["student=checkpoint"], "student.path: expected a value on the command line"),
        (["student=checkpoint", "student.path=nothing.safetensors"], "nothing.safetensors: expected a file, found none"),
        (["student=checkpoint", "student.path=text.safetensors"], "text.safetensors: expected a detkd checkpoint"),
    ],
)
def test_a_student_that_is_none(command: Callable[..., Any], arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    error = command("export", *arguments, "formats=darknet", "out=it", cwd=tmp_path).error()
    assert message in error
    assert list((tmp_path / "it").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["formats=[tflite]"],
            "formats: expected some of onnx, exported_program, darknet, like formats=[onnx], found ['tflite']",
        ),
        (["formats=[]"], "formats: expected some of onnx, exported_program, darknet, like formats=[onnx], found none"),
        (["data.length=0"], "data.length: expected at least 1 image, found 0"),
        (["data.num_workers=2"], "data.num_workers: expected 0"),
        (["data.root=nowhere"], "nowhere"),
    ],
)
def test_a_value_that_does_not_go(
    command: Callable[..., Any], detectors: Path, arguments: list[str], message: str, tmp_path: Path
) -> None:
    error = command("export", *student(detectors), "formats=darknet", "out=it", *arguments, cwd=tmp_path).error()
    assert message in error
    assert list((tmp_path / "it").iterdir()) == []


def test_a_student_of_another_kind_or_size(command: Callable[..., Any], detectors: Path, tmp_path: Path) -> None:
    save_checkpoint(SSD("ssdlite320_mobilenet_v3_large", ("cat",), (96, 96)), tmp_path / "ssd.safetensors")
    error = command("export", *student(tmp_path, "ssd"), "formats=darknet", "out=it", cwd=tmp_path).error()
    assert "formats=[darknet]: expected a student of darknet (a DarknetDetector), found a SSD" in error
    small = load_checkpoint(detectors / "student.safetensors")
    save_checkpoint(DarknetDetector(**(small.arguments() | {"image_size": [100, 64]})), tmp_path / "odd.safetensors")
    error = command("export", *student(tmp_path, "odd"), "formats=exported_program", "out=it", cwd=tmp_path).error()
    assert "student: its own image size does not go with its network" in error
    assert list((tmp_path / "it").iterdir()) == []


def test_the_current_folder_stays(command: Callable[..., Any], detectors: Path, tmp_path: Path) -> None:
    error = command("export", *student(detectors), "formats=darknet", "out=.", cwd=tmp_path).error()
    assert "expected a folder that can be replaced whole" in error
    assert "found the current folder" in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_left_alone(
    command: Callable[..., Any], detectors: Path, tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    given = [*student(detectors), "formats=darknet", "out=it"]
    command("export", *given, cwd=tmp_path).ok()
    before = files_of(tmp_path / "it")
    assert "found another run; keys that differ: ['nms']" in command("export", *given, "nms=true", cwd=tmp_path).error()
    assert files_of(tmp_path / "it") == before
    (tmp_path / "it/mine.txt").write_text("kept")
    assert "expected an empty folder or an export, found mine.txt" in command("export", *given, cwd=tmp_path).error()
    assert files_of(tmp_path / "it") == before | {"mine.txt": b"kept"}
    shutil.rmtree(tmp_path / "it")
    (tmp_path / "it").mkdir()
    (tmp_path / "it/config.yaml").write_text("")
    assert "found config.yaml without results.json" in command("export", *given, cwd=tmp_path).error()
