"""README.md of an exported student, and where it has its facts from."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from detkd.detectors.checkpoint import save_checkpoint
from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.detectors.deploy import make_graph
from detkd.disk import sha256_of
from detkd.evaluation.parity import Parity
from detkd.runtime.model_card import model_card
from detkd.runtime.provenance import Provenance, read_provenance

NASTY = ("<script>alert(1)</script>", "a`b|c", "ünïcode 'quoted'")


def student(resize: Any = "stretch", classes: tuple[str, ...] = NASTY) -> Any:
    torch.manual_seed(0)
    return yolov3_tiny(classes, (32, 64), resize, width=0.0625)


def card(detector: Any, provenance: Provenance, nms: bool = False) -> str:
    hashes = {"model.onnx": "0" * 64, "model.cfg": "1" * 64}
    graph = make_graph(detector, nms)
    return model_card(detector, graph, ["onnx", "darknet"], hashes, {"model.onnx": Parity()}, 4, provenance)


def test_it_says_what_goes_in_and_out() -> None:
    text = card(student(), Provenance())
    assert "(B, 3, 32, 64) float32, RGB, from 0 to 1" in text
    assert "`scores` (B, N, 3)" in text
    assert "Nothing is recorded." in text
    assert "None are recorded." in text
    assert "0" * 64 in text
    assert "label -1" in card(student(), Provenance(), nms=True)


def test_names_are_escaped() -> None:
    text = card(
        student(), Provenance("<b>.safetensors", "f" * 64, {}, {"loss": "<i>|x", "data.root": "a\nb"}, {"scored_on": "<u>"})
    )
    outside = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text)  # code spans are not read as markup
    for name in ("<b>", "<i>", "<u>", "<script>"):
        assert name not in outside.replace("\\<", "")
    assert "data.root`: `a b`" in text


def test_differences_are_rounded_up() -> None:
    of = Parity()
    of.add(
        {"boxes": torch.zeros(1), "scores": torch.zeros(1)},
        {"boxes": torch.tensor([1.14e-5]), "scores": torch.tensor([2.01e-6])},
        [],
        [],
    )
    detector = student()
    text = model_card(detector, make_graph(detector), ["onnx"], {"model.onnx": "0" * 64}, {"model.onnx": of}, 4, Provenance())
    assert "on 4 images all sites: boxes within 1.2e-05 px, scores within 2.1e-06; 0 detections |" in text
    assert "not checked: the student finds nothing in the 4 images" in card(detector, Provenance())


@pytest.mark.parametrize("nms", [False, True])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_snippet_places_an_image_as_the_student_has_it(
    resize: str, nms: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run it, with a session that answers with boxes of the whole canvas: they come out in pixels of the image."""
    import numpy as np
    from PIL import Image

    from detkd.data.letterbox import place

    text = card(student(resize), Provenance(), nms)
    snippet = text.split("```python\n")[1].split("```")[0]
    assert len(snippet.splitlines()) <= (10 if resize == "stretch" else 15)
    ast.parse(snippet)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "image.png")
    seen: list[Any] = []

    class Session:
        def __init__(self, path: str, providers: list[str]) -> None:
            assert path == "model.onnx"

        def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
            seen.append(feed["images"])
            canvas = place(picture, (32, 64), resize)[1].apply_xyxy(torch.tensor([[0.0, 0, 40, 50]])).numpy()  # type: ignore[arg-type]
            if nms:
                boxes = np.concatenate([canvas, canvas * 0])[None]
                return [boxes, np.array([[0.9, 0.0]], np.float32), np.array([[1, -1]])]
            return [canvas[None], np.array([[[0.1, 0.9, 0.0]]], np.float32)]

    (tmp_path / "onnxruntime.py").write_text("InferenceSession = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "onnxruntime", raising=False)
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    names: dict[str, Any] = {}
    exec(snippet.replace('"image.jpg"', repr(str(tmp_path / "image.png"))), names)
    expected, _ = place(picture, (32, 64), resize)  # type: ignore[arg-type]
    np.testing.assert_array_equal(seen[0][0], expected.numpy().astype(np.float32) / 255)
    np.testing.assert_allclose(names["boxes"], [[0, 0, 40, 50]], atol=1e-4)
    assert names["labels"].tolist() == [1]
    monkeypatch.delitem(__import__("sys").modules, "onnxruntime")


def run_folder(folder: Path, about: dict[str, Any]) -> Path:
    path = folder / "student.safetensors"
    save_checkpoint(student(), path, about)
    return path


def test_provenance_of_a_run(tmp_path: Path) -> None:
    path = run_folder(tmp_path, {"seed": 3, "teacher_sha256": "ab", "scores": {"ap": 0.25}})
    node = OmegaConf.create({"path": str(path)})
    alone = read_provenance(node)
    assert (alone.source, alone.sha256) == ("student.safetensors", sha256_of(path))
    assert (alone.scores, alone.training) == ({"ap": 0.25}, {})
    (tmp_path / "results.json").write_text(json.dumps({"student": "student.safetensors", "ap": 0.5, "scored_on": "x"}))
    config = {"loss": {"mimic": {"weight": 1}, "tv": None}, "steps": 7, "data": {"root": "set"}, "optimizer": {"lr": 0.1}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    found = read_provenance(node)
    assert found.scores["ap"] == 0.5
    assert found.training == {"loss": "mimic", "steps": 7, "data.root": "set", "optimizer.lr": 0.1}
    text = card(student(), found)
    assert "| ap | 0.5000 |" in text
    assert "`loss`: `mimic`" in text
    assert "- seed: `3`" in text


def test_no_folder_of_the_machine_is_in_the_card(tmp_path: Path) -> None:
    scores = {"ap": 0.25, "scored_on": str(tmp_path / "alice" / "secret" / "val")}
    path = run_folder(tmp_path, {"data_sha256": "d" * 64, "scores": scores})
    node = OmegaConf.create({"path": str(path)})
    alone = card(student(), read_provenance(node))
    (tmp_path / "results.json").write_text(json.dumps({"student": "student.safetensors", **scores}))
    config = {
        "data": {"root": f"{tmp_path}/alice/secret/set/"},
        "teacher": {"path": "C:\\Users\\alice\\secret\\teacher.safetensors"},
        "val": {"root": "../secret/val"},
    }
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    text = card(student(), read_provenance(node))
    for said in (alone, text):
        assert not [word for word in ("alice", "secret", str(tmp_path)) if word in said]
        assert "| scored\\_on | val |" in said or "| scored_on | val |" in said
        assert "d" * 64 in said
    assert "`data.root`: `set`" in text
    assert "`teacher.path`: `teacher.safetensors`" in text
    assert "`val.root`: `val`" in text


@pytest.mark.parametrize("damaged", ["results.json", "config.yaml"])
def test_a_damaged_run_is_no_hindrance(damaged: str, tmp_path: Path) -> None:
    path = run_folder(tmp_path, {})
    (tmp_path / "results.json").write_text('{"student": "student.safetensors"}')
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    (tmp_path / damaged).write_text("{[")
    found = read_provenance(OmegaConf.create({"path": str(path)}))
    assert found.source == "student.safetensors"
    assert found.training == {}


def test_results_of_another_student_are_not_taken(tmp_path: Path) -> None:
    path = run_folder(tmp_path, {"scores": {"ap": 0.25}})
    (tmp_path / "results.json").write_text('{"student": "other.safetensors", "ap": 0.9}')
    assert read_provenance(OmegaConf.create({"path": str(path)})).scores == {"ap": 0.25}


def test_a_student_that_is_no_checkpoint() -> None:
    assert read_provenance(OmegaConf.create({"weights": "a.weights"})) == Provenance()
