"""A darknet student as .cfg, .weights and .names, and back."""

from __future__ import annotations

from pathlib import Path

import detkd_tests_catalogue as catalogue  # put there by conftest.py
import pytest
import torch

from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.detectors.deploy.darknet_files import as_darknet, check_darknet, read_darknet, write_darknet
from detkd.errors import InputError


@pytest.mark.parametrize("name", ["yolov3_tiny", "yolov3_spp"])
def test_files_open_to_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    detector = catalogue.build(name)
    write_darknet(detector, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model.cfg", "model.weights", "model.names"}
    images = catalogue.images_for(detector, 2)
    check_darknet(tmp_path, detector, images)
    again = read_darknet(tmp_path, detector)
    assert again.spec == detector.spec
    again.score_threshold = detector.score_threshold  # no cfg has it
    with torch.no_grad():
        for one, other in zip(detector.decode(detector(images)), again.decode(again(images))):
            assert all(torch.equal(one[key], other[key]) for key in ("boxes", "labels", "scores"))


def test_the_cfg_says_the_image_size_that_the_student_was_made_for(tmp_path: Path) -> None:
    detector = catalogue.build("yolov3_tiny")
    arguments = detector.arguments() | {"image_size": [96, 128]}
    wider = type(detector)(**arguments).eval()
    wider.load_state_dict(detector.state_dict())
    write_darknet(wider, tmp_path)
    assert read_darknet(tmp_path, wider).spec.image_size == (96, 128)


def test_weights_of_another_are_found(tmp_path: Path) -> None:
    detector, other = catalogue.build("yolov3_tiny"), catalogue.build("yolov3_tiny", seed=1)
    write_darknet(other, tmp_path)
    with pytest.raises(
        InputError, match=r"model\.weights: expected the student's outputs to the bit, found others: box, obj, cls"
    ):
        check_darknet(tmp_path, detector, catalogue.images_for(detector, 1))
    write_darknet(yolov3_tiny(("cat", "dog", "bird"), (64, 64), width=0.25), tmp_path)
    with pytest.raises(InputError, match=r"model\.names: expected the student's 3 class names"):
        check_darknet(tmp_path, detector, catalogue.images_for(detector, 1))


def test_only_a_darknet_student_with_names_of_one_line() -> None:
    with pytest.raises(InputError, match=r"formats=\[darknet\]: expected a student of darknet .* found a SSD"):
        as_darknet(catalogue.build("ssdlite"))
    for name in ("a\nb", " ", "a\u2028b", "\ud800"):
        with pytest.raises(InputError, match="class names of one line of text each"):
            as_darknet(yolov3_tiny((name,), (64, 64), width=0.125))
