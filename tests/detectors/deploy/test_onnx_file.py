"""ONNX files of the catalogue's detectors in onnxruntime; `make test-export` has the packages."""

from __future__ import annotations

from pathlib import Path

import detkd_tests_catalogue as catalogue  # put there by conftest.py
import pytest
import torch

from detkd.detectors.deploy import export_graph, make_graph
from detkd.detectors.deploy.nms import surviving
from detkd.detectors.deploy.onnx_file import PACKAGES, OnnxFile, check_packages, finish_onnx, package, write_onnx
from detkd.errors import InputError
from detkd.evaluation.parity import Parity

FAMILIES = (
    "yolov3_tiny",
    "yolo_fastest",
    "ssdlite",
    "retinanet_r18",
    "fcos_r18",
    "faster_rcnn_r18",
    "faster_rcnn_c4_r18",
    "cascade_rcnn_r18",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_without_a_package_the_error_has_the_pip_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match=rf"found no {name} .*pip install 'detkd\[export\]'"):
        package(name)
    with pytest.raises(InputError, match=r"pip install 'detkd\[export\]'"):
        check_packages()


def need_packages() -> None:
    for name in PACKAGES:
        pytest.importorskip(name, reason=f"needs {name}: pip install 'detkd[export]'")


@pytest.mark.parametrize("nms", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_says_what_the_detector_says(name: str, nms: bool, tmp_path: Path) -> None:
    need_packages()
    catalogue.need(name)
    detector, path = catalogue.build(name), tmp_path / "model.onnx"
    graph = make_graph(detector, nms, raw=True)
    write_onnx(export_graph(graph), path, graph.outputs)
    parity, run = Parity(), OnnxFile(path, threads=1)
    for count in (1, 3) if graph.any_batch else (1, 1):
        images = catalogue.images_for(detector, count, seed=count)
        found = run(images)
        assert set(found) == set(graph.outputs)
        expected = graph(images)
        parity.add({name: expected[name] for name in graph.sites}, found, graph.detections(expected), graph.detections(found))
        if graph.rows:
            parity.add_rows({name: expected[name] for name in graph.rows}, found, "raw_proposals")
    of_all, of_rows = parity.detections, parity.rows
    assert set(parity.outputs) == set(graph.outputs) - ({"boxes", "scores", "labels"} if nms else set())
    assert (of_rows.matched > 10) == (not graph.any_batch)
    assert of_rows.expected_alone + of_rows.found_alone <= 0.1 * of_rows.matched
    assert of_all.matched > 10
    # scores of random heads are all but equal, so that rounding may swap who suppresses whom
    assert of_all.expected_alone + of_all.found_alone <= 0.1 * of_all.matched
    assert of_all.box <= 0.01
    assert of_all.score <= 1e-4
    assert all(of.over_tolerance <= 1 for of in parity.outputs.values()), parity.line()

    finish_onnx(path, graph.raw, {"classes": "x"})
    finished = OnnxFile(path, threads=1)
    assert list(finished(images)) == [key for key in graph.outputs if key not in graph.raw]
    torch.testing.assert_close(finished(images)["scores"], found["scores"], rtol=0, atol=1e-6)
    assert finished.session.get_modelmeta().custom_metadata_map == {"classes": "x"}
    assert b"site-packages" not in path.read_bytes()
    assert finished.session.get_inputs()[0].shape[1:] == [3, *detector.spec.image_size]
    assert (finished.session.get_inputs()[0].shape[0] == 1) != graph.any_batch


def test_suppression_is_torchvisions(tmp_path: Path) -> None:
    need_packages()

    class Alone(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ops.detkd.suppress(images[..., :4], images[..., 4], images[..., 5].long(), 3, 0.4).float()

    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 60, 2, generator=generator) * 60
    scores = torch.rand(2, 60, 1, generator=generator) - 0.3
    labels = torch.randint(3, (2, 60, 1), generator=generator)
    given = torch.cat([corner, corner + 20, scores.clamp(min=0), labels], dim=-1)
    write_onnx(torch.export.export(Alone(), (given,), strict=False), tmp_path / "nms.onnx", ["kept"])
    kept = OnnxFile(tmp_path / "nms.onnx", threads=1)(given)["kept"]
    expected = surviving(given[..., :4], given[..., 4], given[..., 5].long(), 3, 0.4)
    assert 0 < int(expected.sum()) < int((given[..., 4] > 0).sum())
    assert torch.equal(kept > 0, expected)
