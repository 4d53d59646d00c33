"""What a deployable graph of a detector is, and its export: which family, which outputs, which batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from detkd.detectors.deploy.nms import decompositions
from detkd.detectors.deploy.one_stage import READERS, OneStageGraph
from detkd.detectors.deploy.selection import Candidates, to_detections
from detkd.detectors.deploy.two_stage import ROI_OUTPUTS, TwoStageGraph
from detkd.detectors.protocol import Detector
from detkd.detectors.torchvision.two_stage import TwoStageRCNN
from detkd.errors import InputError
from detkd.structures import Detection

TWO_STAGE = ("FasterRCNN", "FasterRCNNC4", "CascadeRCNN")
# Before two images of a dynamic batch torch.export would take 1 for a constant.
_TRACED = 2


class Graph(NamedTuple):
    """A module from images to tensors, and what is to be known of it.

    module: images (B, 3, H, W) float32 RGB in [0, 1] to a tuple of tensors; eval mode, on the CPU.
    outputs: their names. raw: those of them that are the heads' own, for comparison. any_batch: whether B is free, or 1.
    rows: those of them that have a row a proposal, of two-stage detectors; rows may change places where the RPN's scores are all but equal.
    """

    module: OneStageGraph | TwoStageGraph
    outputs: tuple[str, ...]
    raw: tuple[str, ...]
    any_batch: bool
    rows: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The outputs that have a fixed place for everything: no rows of proposals, no detections."""
        free = {*self.rows, *(("boxes", "scores", "labels") if "labels" in self.outputs else ())}
        return tuple(name for name in self.outputs if name not in free)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Its outputs by name, of images of any float type."""
        with torch.no_grad():
            return dict(zip(self.outputs, self.module(images), strict=True))

    def detections(self, outputs: Mapping[str, Tensor]) -> list[Detection]:
        """One Detection an image from the graph's outputs by name, whoever computed them; suppressed here where the graph does not."""
        if "labels" in outputs:
            return to_detections(Candidates(outputs["boxes"], outputs["scores"], outputs["labels"]))
        return to_detections(self.module.select(outputs["boxes"], outputs["scores"]))


def make_graph(detector: Detector, nms: bool = False, raw: bool = False) -> Graph:
    """The graph of a detector, which is put into eval mode. It runs once, so that nothing is left to be set up on first use.

    nms: detections after suppression instead of all boxes. raw: with the head's own outputs.

    Raises InputError for a detector of no family known here, and as the detector does for its own image size.
    """
    check_exportable(detector)
    detector.eval().requires_grad_(False)
    try:
        with torch.no_grad():
            prediction = detector(torch.zeros(1, 3, *detector.spec.image_size))
            detector.decode(prediction)
    except InputError as error:
        raise InputError(f"student: its own image size does not go with its network: {error}") from None
    heads = tuple(f"raw_{key}" for key in sorted(prediction.raw)) if raw else ()
    names = ("boxes", "scores", "labels") if nms else ("boxes", "scores")
    if isinstance(detector, TwoStageRCNN):
        of_rois = tuple(f"raw_{key}" for key in ROI_OUTPUTS) if raw else ()
        rows = of_rois if nms else (*names, *of_rois)
        heads = (*heads, *of_rois)
        return Graph(TwoStageGraph(detector, nms, raw).eval(), (*names, *heads), heads, any_batch=False, rows=rows)
    lengths = [h * w * a for h, w, a in prediction.sizes]
    return Graph(OneStageGraph(detector, lengths, nms, raw).eval(), (*names, *heads), heads, any_batch=True)


def check_exportable(detector: Detector) -> None:
    """Raise InputError unless the detector is of a family that has a graph."""
    if not isinstance(detector, TwoStageRCNN) and type(detector).__name__ not in READERS:
        families = ", ".join(sorted((*READERS, *TWO_STAGE)))
        raise InputError(f"student: expected one of {families} to export, found {type(detector).__name__}")


def export_graph(graph: Graph) -> torch.export.ExportedProgram:
    """The graph at the detector's image size, its batch dimension free where it can be.

    Suppression is one node of detkd's own, which onnx_file.py translates; :func:`portable` replaces it for torch.
    """
    module = graph.module
    height, width = module.detector.spec.image_size
    images = torch.zeros(_TRACED if graph.any_batch else 1, 3, height, width)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}} if graph.any_batch else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torchvision about itself
        return torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)


def portable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program of operators of torch and torchvision alone, so that it opens without detkd."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        opened = program.run_decompositions(decompositions())
    for node in opened.graph.nodes:
        node.meta.pop("stack_trace", None)  # names of files on the machine that wrote it
    return opened
