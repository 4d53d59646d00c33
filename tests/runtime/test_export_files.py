"""The parts of runtime/export.py: folders that appear whole, and files that say something else than the student."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.detectors.deploy import Graph, make_graph
from detkd.detectors.torchvision import FasterRCNN
from detkd.errors import InputError
from detkd.evaluation.parity import Parity
from detkd.runtime.export import (
    check_folder,
    check_formats,
    check_weights,
    compare,
    export_student,
    read_images,
    replacing_folder,
)
from detkd.runtime.provenance import Provenance

CFG = OmegaConf.create({"nms": False, "data": {"root": None, "length": 3}})


@pytest.fixture(scope="module")
def student() -> Any:
    torch.manual_seed(0)
    return yolov3_tiny(("cat", "dog"), (32, 32), width=0.0625).eval()


@pytest.fixture(scope="module")
def two_stage() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 16, "width": 0.125, "roi_width": 16, "proposals": 32, "anchor_size": 8}
    return FasterRCNN(classes=("cat", "dog"), image_size=(64, 64), backbone="resnet18", score_threshold=0.99, **sizes).eval()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with replacing_folder(folder) as work:
        (work / "a").write_text("1")
        assert not folder.exists()
    assert [p.name for p in folder.iterdir()] == ["a"]

    def fail() -> None:
        with replacing_folder(folder) as work:
            (work / "b").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in folder.iterdir()] == ["a"]
    with replacing_folder(folder) as work:
        (work / "c").write_text("3")
    assert [p.name for p in folder.iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_was_there_comes_back_where_the_new_folder_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace = tmp_path / "out", os.replace
    folder.mkdir()
    (folder / "a").write_text("1")

    def stubborn(source: Path, destination: Path) -> None:
        if source.name == "new":
            raise OSError("no")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", stubborn)
    with pytest.raises(OSError, match="no"), replacing_folder(folder):
        pass
    assert (folder / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_compare_sees_every_image_alone_and_together(student: Any) -> None:
    graph, images, sizes = make_graph(student, raw=True), torch.rand(3, 3, 32, 32), []

    def run(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(batch))
        return graph(batch)

    parity = compare(graph, run, images)
    assert sizes == [1, 2]
    assert parity.failures() == []
    assert set(parity.outputs) == {"boxes", "scores", "raw_box", "raw_cls", "raw_obj"}
    assert all(of.absolute == 0 for of in parity.outputs.values())


@pytest.mark.parametrize(("name", "by"), [("raw_box", 0.1), ("scores", 0.01), ("boxes", 1.0)])
def test_compare_finds_what_is_off(student: Any, name: str, by: float) -> None:
    graph = make_graph(student, raw=True)
    parity = compare(graph, lambda batch: (of := graph(batch)) | {name: of[name] + by}, torch.rand(2, 3, 32, 32))
    assert any(failure.startswith(name) for failure in parity.failures())


@pytest.mark.parametrize("name", ["raw_roi_cls", "raw_roi_box", "raw_box", "scores"])
def test_compare_sees_the_box_head_of_a_two_stage_student(two_stage: Any, name: str) -> None:
    """Where nothing is found, too: only its proposals are compared."""
    graph, images = make_graph(two_stage, raw=True), torch.full((2, 3, 64, 64), 0.5)
    well = compare(graph, graph, images)
    assert (well.passed(), well.detections.matched) == (True, 0)
    assert well.rows.matched > 10
    assert set(well.outputs) == set(graph.outputs)
    ill = compare(graph, lambda batch: (of := graph(batch)) | {name: of[name] + 0.01}, images)
    assert any(failure.startswith(name) for failure in ill.failures())


def test_a_file_of_which_nothing_was_compared_has_not_passed(
    student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is found: with nms=true nothing that the file gives is compared, without it all sites are."""

    def written(graph: Graph, raw: Graph, images: torch.Tensor, path: Path) -> Parity:
        path.touch()
        return compare(raw, raw, images)

    monkeypatch.setattr("detkd.runtime.export._write_program", written)
    silent = yolov3_tiny(("cat", "dog"), (32, 32), width=0.0625)
    silent.load_state_dict(student.state_dict())
    silent.score_threshold = 1.0
    for nms, passed, said in ((True, None, "not checked: the student finds nothing"), (False, True, "all sites: boxes within")):
        cfg, out = OmegaConf.create({"nms": nms, "data": {"root": None}}), tmp_path / str(nms)
        results = export_student(cfg, silent, ["exported_program"], torch.rand(2, 3, 32, 32), Provenance(), out)
        assert results["parity"] == {"model.pt2": passed}
        assert said in (out / "README.md").read_text()


def test_a_file_that_says_something_else_leaves_nothing(student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(folder: Path, *_: Any) -> None:
        raise InputError("model.weights: expected the student's outputs")

    monkeypatch.setattr("detkd.runtime.export.check_darknet", wrong)
    with pytest.raises(InputError, match=r"model\.weights"):
        export_student(CFG, student, ["darknet"], torch.rand(1, 3, 32, 32), Provenance(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_images_are_scenes_where_no_folder_is_given(student: Any) -> None:
    images = read_images(CFG, student.spec)
    assert images.shape == (3, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, read_images(CFG, student.spec))


def test_formats_once_each(student: Any) -> None:
    assert check_formats(OmegaConf.create(["darknet", "exported_program", "darknet"]), student) == [
        "darknet",
        "exported_program",
    ]
    assert check_formats("darknet", student) == ["darknet"]


def test_formats_by_default_are_all_that_the_student_has(student: Any, two_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkd.runtime.export.check_packages", lambda: None)
    assert check_formats(None, student) == ["onnx", "exported_program", "darknet"]
    assert check_formats(None, two_stage) == ["onnx", "exported_program"]


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "out" / "in"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with pytest.raises(InputError, match=r"replaced whole, like .*in/export, found the current folder$"):
        check_folder(CFG, inside)
    with pytest.raises(InputError, match="found the current folder inside it"):
        check_folder(CFG, tmp_path / "out")
    check_folder(CFG, tmp_path / "other")


def test_a_mount_point_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "out", os.rename
    folder.mkdir()
    (folder / "README.md").write_text("kept")
    (folder / "results.json").write_text("{}")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(CFG))

    def busy(source: Path, destination: str) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(
        InputError, match=r"expected a folder that can be replaced whole, like .*out/export, found a mount point"
    ):
        check_folder(CFG, folder)
    monkeypatch.setattr(os, "rename", rename)
    check_folder(CFG, folder)
    assert (folder / "README.md").read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no mount point at /dev/shm to try")
def test_a_real_mount_point_is_not_replaced() -> None:
    with pytest.raises(InputError, match="expected a folder that can be replaced whole, like /dev/shm/export"):
        check_folder(CFG, Path("/dev/shm"))


@pytest.mark.parametrize("node", [{"path": "a"}, {"weights": "a.weights"}, {}])
def test_students_with_weights(node: dict[str, str]) -> None:
    check_weights(OmegaConf.create(node))


def test_students_without() -> None:
    with pytest.raises(InputError, match="an architecture alone"):
        check_weights(OmegaConf.create({"weights": None, "detector": {}}))
