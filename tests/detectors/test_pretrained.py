"""A detector with weights and names from files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from detkd.detectors.checkpoint import fingerprint
from detkd.detectors.darknet.detector import from_cfg, yolov3_tiny
from detkd.detectors.files import File
from detkd.detectors.pretrained import pretrained
from detkd.errors import InputError

small: Any = partial(yolov3_tiny, image_size=(64, 64), width=0.1)


def test_random_start_depends_on_the_seed_alone() -> None:
    first = fingerprint(pretrained(small, ("a", "b"), seed=3))
    torch.rand(7)
    state = torch.get_rng_state()
    assert fingerprint(pretrained(small, ("a", "b"), seed=3)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(pretrained(small, ("a", "b"), seed=4)) != first


def test_names_and_weights_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.names").write_text("cat\naeroplane\n")
    given = small(classes=("cat", "airplane"))
    given.save_weights(tmp_path / "a.weights")
    for classes in (File(str(tmp_path / "a.names")), str(tmp_path / "a.names"), ["cat", "airplane"]):
        built = pretrained(small, classes, File(str(tmp_path / "a.weights")))
        assert built.spec.classes == ("cat", "airplane")
        images = torch.rand(1, 3, 64, 64)
        assert torch.equal(built.eval()(images).raw["box"], given.eval()(images).raw["box"])


def test_names_may_be_left_to_the_architecture() -> None:
    assert pretrained(partial(small, classes=("only",))).spec.classes == ("only",)


def test_weights_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    small(classes=("cat",)).save_weights(tmp_path / "one.weights")
    with pytest.raises(InputError, match=r"one.weights: expected .* values for this cfg"):
        pretrained(small, ("a", "b"), str(tmp_path / "one.weights"))
    with pytest.raises(InputError, match=r"none.weights: expected a file, found none"):
        pretrained(small, ("a", "b"), str(tmp_path / "none.weights"))


def test_weights_of_darknet_are_for_darknet(tmp_path: Path, tiny_detector: Any) -> None:
    (tmp_path / "a.weights").write_bytes(bytes(64))
    with pytest.raises(InputError, match=r"a.weights: expected a darknet architecture .*got TinyDetector"):
        pretrained(tiny_detector, None, str(tmp_path / "a.weights"))


def test_names_must_fit_the_cfg(shared: Path) -> None:
    cfg: Any = partial(from_cfg, shared / "weights" / "yolo-fastest-1.1.cfg")
    with pytest.raises(InputError, match=r"yolo-fastest-1.1.cfg, line .*\[yolo\]: expected classes=2 .* found classes=80"):
        pretrained(cfg, ("a", "b"))
