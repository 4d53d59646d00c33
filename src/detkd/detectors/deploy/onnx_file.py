"""ONNX files, by the optional packages onnx and onnxscript (to write) and onnxruntime (to run), which are imported here and not before."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkd.errors import InputError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18


def package(name: str) -> Any:
    """The package. Raises InputError with the pip line where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"formats=[onnx]: expected the packages {', '.join(PACKAGES)}, found no {name} ({error}): pip install 'detkd[export]'"
        ) from None


def check_packages() -> None:
    """Raise InputError with the pip line unless all of ``PACKAGES`` can be imported."""
    for name in PACKAGES:
        package(name)


def write_onnx(program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    """Write a graph of :func:`~detkd.detectors.deploy.graph.export_graph`, its input named "images".

    outputs: names of its outputs, in order. Raises InputError where a package is missing.
    """
    check_packages()
    with _quietly():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(outputs),
            custom_translation_table={torch.ops.detkd.suppress.default: _suppress},
            verbose=False,
        )
    assert written is not None
    written.save(str(path), external_data=False)


def finish_onnx(path: Path, drop: Sequence[str], properties: Mapping[str, str]) -> None:
    """Take outputs off a file, with what only they needed, and give it properties; what it computes stays as it is.

    The exporter notes beside each node where in whose files the code stands; those notes go too.
    """
    onnx, ir = package("onnx"), package("onnx_ir")
    model = ir.load(str(path))
    for value in [v for v in model.graph.outputs if v.name in drop]:
        model.graph.outputs.remove(value)
    with _quietly():
        importlib.import_module("onnx_ir.passes.common").RemoveUnusedNodesPass()(model)
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            node.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(properties)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))


class OnnxFile:
    """An ONNX file that runs on the CPU: images (B, 3, H, W) float32 to its outputs by name.

    Raises InputError where onnxruntime is missing.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        runtime = package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, {"images": images.detach().cpu().float().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values)}


def _suppress(boxes: Any, scores: Any, labels: Any, groups: int, iou: float) -> Any:
    """detkd::suppress in words of ONNX: NonMaxSuppression, whose own classes are the groups.

    A box enters that of its label alone, since its score is 0 elsewhere and 0 does not pass the threshold.
    """
    op = package("onnxscript").opset18
    names = op.Reshape(op.Constant(value_ints=list(range(groups))), op.Constant(value_ints=[1, groups, 1]))
    one = op.Constant(value_ints=[1])
    none = op.CastLike(op.Constant(value_float=0.0), scores)
    of_group = op.Where(op.Equal(op.Unsqueeze(labels, one), names), op.Unsqueeze(scores, one), none)  # (B, G, K)
    # at most all boxes; the number must fit int32 in some runtimes
    most = op.Shape(scores, start=1)
    threshold = op.Constant(value_floats=[float(iou)])
    kept = op.NonMaxSuppression(boxes, of_group, most, threshold, op.Constant(value_floats=[0.0]))  # (n, 3): image, group, box
    where = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)  # (n, 2)
    empty = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))  # (B, K)
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(kept, start=0, end=1))  # (n,)
    marked = op.ScatterND(empty, where, ones)
    return op.And(op.Cast(marked, to=9), op.Greater(scores, none))  # 9: bool


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's progress, which it prints and logs whatever it is told."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
