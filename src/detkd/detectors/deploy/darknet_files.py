"""A darknet student as the three files that any darknet reads: .cfg, .weights, .names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from detkd.classes import canonical
from detkd.detectors.darknet.cfg import format_cfg, parse_cfg
from detkd.detectors.darknet.detector import DarknetDetector, from_cfg
from detkd.detectors.files import read_names
from detkd.detectors.protocol import Detector
from detkd.disk import replace_file
from detkd.errors import InputError

CFG, WEIGHTS, NAMES = "model.cfg", "model.weights", "model.names"


def as_darknet(detector: Detector) -> DarknetDetector:
    """The detector, known to be darknet's with names that a .names file can hold. Raises InputError."""
    if not isinstance(detector, DarknetDetector):
        raise InputError(
            f"formats=[darknet]: expected a student of darknet (a DarknetDetector), found a {type(detector).__name__}"
        )
    for name in detector.spec.classes:
        if name.splitlines() != [name] or not name.strip() or name.encode("utf-8", "replace").decode() != name:
            raise InputError(f"formats=[darknet]: expected class names of one line of text each, found {name!r}")
    return detector


def write_darknet(detector: DarknetDetector, folder: Path) -> None:
    """Write ``CFG`` with the detector's image size as its own, ``WEIGHTS`` and ``NAMES`` into a folder."""
    sections = parse_cfg(detector.arguments()["cfg"])
    height, width = detector.spec.image_size
    net = sections[0].options | {"width": str(width), "height": str(height)}
    replace_file(folder / CFG, format_cfg([replace(sections[0], options=net), *sections[1:]]).encode())
    replace_file(folder / NAMES, ("\n".join(detector.spec.classes) + "\n").encode())
    detector.save_weights(folder / WEIGHTS)


def read_darknet(folder: Path, like: DarknetDetector) -> DarknetDetector:
    """The detector that the files of :func:`write_darknet` make, with the resize of ``like``, which no cfg says. In eval mode."""
    detector = from_cfg(folder / CFG, read_names(folder / NAMES), resize=like.spec.resize)
    detector.load_weights(folder / WEIGHTS)
    return detector.eval()


def check_darknet(folder: Path, detector: DarknetDetector, images: Tensor) -> None:
    """Raise InputError unless the files give the detector's raw outputs on images (B, 3, H, W), bit for bit, its class names and image size."""
    again = read_darknet(folder, detector)
    if again.spec.classes != tuple(map(canonical, detector.spec.classes)):
        raise InputError(f"{folder / NAMES}: expected the student's {len(detector.spec.classes)} class names, found others")
    if again.spec.image_size != detector.spec.image_size:
        raise InputError(f"{folder / CFG}: expected image size {detector.spec.image_size}, found {again.spec.image_size}")
    with torch.no_grad():
        expected, found = detector(images).raw, again(images).raw
    if differing := [name for name in expected if not torch.equal(expected[name], found[name])]:
        raise InputError(f"{folder / WEIGHTS}: expected the student's outputs to the bit, found others: {', '.join(differing)}")
