"""`python -m detkd.export` with its default formats, and its card's lines in onnxruntime; `make test-export` has the packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detkd.data.letterbox import place
from detkd.detectors.checkpoint import save_checkpoint
from detkd.detectors.torchvision import FasterRCNN

for _package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_package, reason=f"needs {_package}: pip install 'detkd[export]'")


def run_card(folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the lines of the card's snippet leave behind, run in its folder on an image."""
    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(snippet.replace('"image.jpg"', repr(str(image))), names)
    return names


def test_the_built_in_detector_and_its_card(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detkd.assets import builtin
    from detkd.data.scenes import draw_scene

    detector: Any = builtin()
    save_checkpoint(detector, tmp_path / "it.safetensors")
    given = ["student=checkpoint", "student.path=it.safetensors", "out=out", "nms=true", "data.length=3"]
    done = command("export", *given, cwd=tmp_path, timeout=600).ok()
    assert "model.onnx: " in done.stdout
    assert "model.pt2: " in done.stdout
    assert {"model.cfg", "model.weights", "model.names"} < {p.name for p in (tmp_path / "out").iterdir()}
    report = json.loads((tmp_path / "out/parity.json").read_text())
    assert {name: of["detections"]["matched"] > 5 for name, of in report["files"].items()} == {
        "model.onnx": True,
        "model.pt2": True,
    }

    scene = draw_scene(3, 0, image_size=(120, 160))
    picture = Image.fromarray(scene.image.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "scene.png")
    names = run_card(tmp_path / "out", tmp_path / "scene.png", monkeypatch)
    placed, _ = place(picture, detector.spec.image_size, detector.spec.resize)
    with torch.no_grad():
        expected = detector.eval().decode(detector(placed[None].float() / 255))[0]
    assert len(names["scores"]) == len(expected["scores"]) > 0
    torch.testing.assert_close(torch.from_numpy(names["scores"]), expected["scores"], rtol=0, atol=1e-4)
    scale = torch.tensor([160 / 96, 120 / 96, 160 / 96, 120 / 96])
    torch.testing.assert_close(torch.from_numpy(names["boxes"]).float(), expected["boxes"] * scale, rtol=0, atol=0.02)


def test_a_two_stage_student(command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 16, "width": 0.125, "roi_width": 16, "proposals": 32, "anchor_size": 8}
    detector = FasterRCNN(classes=("cat", "dog"), image_size=(64, 64), backbone="resnet18", score_threshold=0.3, **sizes)
    save_checkpoint(detector, tmp_path / "it.safetensors")
    given = ["student=checkpoint", "student.path=it.safetensors", "out=out", "formats=onnx", "data.length=2"]
    command("export", *given, cwd=tmp_path, timeout=600).ok()
    Image.new("RGB", (80, 60), (200, 30, 30)).save(tmp_path / "red.png")
    names = run_card(tmp_path / "out", tmp_path / "red.png", monkeypatch)
    assert names["boxes"].shape == (len(names["labels"]), 4)
    assert set(names["labels"].tolist()) <= {0, 1}
