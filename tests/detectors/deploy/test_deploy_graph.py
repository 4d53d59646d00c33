"""A detector's graph gives what its ``decode`` gives; so does the ExportedProgram, opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detkd_tests_catalogue as catalogue  # put there by conftest.py
import pytest
import torch
from detkd_tests_doubles import TinyDetector  # put there by conftest.py

from detkd.detectors.deploy import Graph, export_graph, make_graph, portable
from detkd.errors import InputError
from detkd.evaluation.parity import Matches

LEFT_OUT = ("double", "fcos_r18_frozen", "yolov3", "yolov3_spp")
FAMILIES = [name for name, case in catalogue.DETECTORS.items() if name not in LEFT_OUT and case.package is None]


def built(name: str) -> Any:
    catalogue.need(name)
    return catalogue.build(name)


def matches(graph: Graph, detector: Any, images: torch.Tensor, outputs: dict[str, torch.Tensor]) -> Matches:
    """Detections of a graph's outputs beside the detector's own."""
    found = Matches()
    for one, other in zip(detector.decode(detector(images)), graph.detections(outputs), strict=True):
        found.add(one, other)
    return found


@pytest.mark.parametrize("nms", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_gives_what_decode_gives(name: str, nms: bool) -> None:
    detector = built(name)
    graph = make_graph(detector, nms)
    images = catalogue.images_for(detector, 2 if graph.any_batch else 1)
    outputs = graph(images)
    found = matches(graph, detector, images, outputs)
    assert found.matched > 5
    # equal scores of random heads may be sorted either way at the end of the list
    assert found.expected_alone + found.found_alone <= 0.1 * found.matched
    assert found.box < 1e-3
    assert found.score < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_do_not_depend_on_what_is_seen(name: str) -> None:
    detector = built(name)
    classes, graph = len(detector.spec.classes), make_graph(detector, raw=True)
    assert graph.any_batch == (name not in catalogue.TWO_STAGE)
    seen, nothing = (
        graph(images) for images in (catalogue.images_for(detector, 1), torch.zeros(1, 3, *detector.spec.image_size))
    )
    assert {k: v.shape for k, v in seen.items()} == {k: v.shape for k, v in nothing.items()}
    count = seen["scores"].shape[1]
    assert seen["scores"].shape == (1, count, classes)
    assert seen["boxes"].shape == ((1, count, 4) if graph.any_batch else (1, count, classes, 4))
    assert graph.raw == tuple(k for k in graph.outputs if k.startswith("raw_"))
    height, width = detector.spec.image_size
    assert seen["scores"].min() >= 0
    assert seen["scores"].max() <= 1
    assert seen["boxes"][..., 0::2].max() <= width or name.startswith(("yolov8", "yolo11"))
    final = make_graph(detector, nms=True)
    assert {k: v.shape for k, v in final(catalogue.images_for(detector, 1)).items()} == {
        k: v.shape for k, v in final(torch.zeros(1, 3, height, width)).items()
    }


@pytest.mark.parametrize("name", ["yolov3_tiny", "ssdlite"])
def test_a_batch_is_its_images(name: str) -> None:
    detector = built(name)
    graph = make_graph(detector, nms=True)
    images = catalogue.images_for(detector, 3)
    together, alone = graph(images), [graph(image[None]) for image in images]
    for key, value in together.items():
        torch.testing.assert_close(value, torch.cat([one[key] for one in alone]), rtol=1e-4, atol=1e-4)


def round_trip(name: str, nms: bool, folder: Path) -> None:
    detector = built(name)
    graph = make_graph(detector, nms)
    path = folder / "model.pt2"
    torch.export.save(portable(export_graph(graph)), path)
    assert b"site-packages" not in path.read_bytes()
    again = torch.export.load(path)
    assert not [n for n in again.graph.nodes if "detkd" in str(n.target)]
    for count in (1, 3) if graph.any_batch else (1,):
        images = catalogue.images_for(detector, count)
        found = dict(zip(graph.outputs, again.module()(images), strict=True))
        for key, value in graph(images).items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
        assert matches(graph, detector, images, found).matched > 5


def test_an_exported_program_opens_to_the_same(tmp_path: Path) -> None:
    round_trip("yolov3_tiny", True, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite", "fcos_r18", "faster_rcnn_r18", "cascade_rcnn_r18", "faster_rcnn_c4_r18"])
@pytest.mark.parametrize("nms", [False, True])
def test_other_exported_programs_open_to_the_same(name: str, nms: bool, tmp_path: Path) -> None:
    round_trip(name, nms, tmp_path)


def nothing_found(name: str, folder: Path) -> None:
    """An ExportedProgram, opened again, on images without a detection (and, of two-stage detectors, without a proposal)."""
    detector = built(name)
    for module in (of for of in detector.modules() if hasattr(of, "score_thresh")):  # torchvision's name
        module.score_thresh = 1.0
    if hasattr(detector, "score_threshold"):
        detector.score_threshold = 1.0
    graph = make_graph(detector, nms=True)
    torch.export.save(portable(export_graph(graph)), folder / "model.pt2")
    again = torch.export.load(folder / "model.pt2").module()
    for count in (1, 3) if graph.any_batch else (1,):
        found = dict(zip(graph.outputs, again(torch.zeros(count, 3, *detector.spec.image_size)), strict=True))
        assert [len(one["scores"]) for one in graph.detections(found)] == [0] * count
        assert (found["labels"] == -1).all()


def test_an_exported_program_of_images_without_a_detection(tmp_path: Path) -> None:
    nothing_found("yolov3_tiny", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite", "faster_rcnn_r18", "cascade_rcnn_r18", "faster_rcnn_c4_r18"])
def test_other_exported_programs_of_images_without_a_detection(name: str, tmp_path: Path) -> None:
    nothing_found(name, tmp_path)


@pytest.mark.parametrize("nms", [False, True])
def test_raw_outputs_of_a_two_stage_detector_have_the_box_heads(nms: bool) -> None:
    detector = built("faster_rcnn_r18")
    graph = make_graph(detector, nms, raw=True)
    roi = ("raw_roi_box", "raw_roi_cls", "raw_proposals")
    assert graph.raw == ("raw_box", "raw_obj", *roi)
    assert graph.rows == (roi if nms else ("boxes", "scores", *roi))
    assert graph.sites == ("raw_box", "raw_obj")
    images = catalogue.images_for(detector, 1)
    outputs = graph(images)
    classes, count = len(detector.spec.classes), outputs["raw_proposals"].shape[1]
    assert outputs["raw_roi_cls"].shape == (1, count, classes + 1)
    assert outputs["raw_roi_box"].shape == (1, count, (classes + 1) * 4)
    expected = detector.propose(detector(images))[0]
    torch.testing.assert_close(outputs["raw_proposals"][0, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_a_detector_of_ones_own_has_no_graph() -> None:
    with pytest.raises(InputError, match=r"DarknetDetector, .*RetinaNet.* to export, found TinyDetector"):
        make_graph(TinyDetector(("cat",)))


def test_an_image_size_that_the_network_cannot_take() -> None:
    detector = catalogue.yolov3_tiny(("cat",), (100, 64), width=0.125)
    with pytest.raises(InputError, match=r"student: its own image size does not go with its network: .*100x64"):
        make_graph(detector)
