"""README.md of an exported student: what it takes, what it gives, where it comes from, how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_UP, Context
from typing import Any

from detkd.data.escape import markdown_code, markdown_text
from detkd.detectors.deploy import Graph
from detkd.detectors.protocol import Detector
from detkd.evaluation.parity import Parity
from detkd.runtime.provenance import Provenance

_SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "images", "scored_on")
_BEFORE = """\
## Before you share or use it

- **Licence.** Nobody has settled the licence of these weights. That of the teacher's weights, and the terms of the images and labels that teacher
  and student were trained on, may apply to them. The code that wrote them is Apache-2.0, which says nothing about the weights.
- **Use.** It inherits the errors and biases of its teacher. The scores above, where there are any, are of the images that they name and of no others."""
_STRETCH = """\
image = Image.open("image.jpg").convert("RGB")
canvas = image.resize(({width}, {height}), Image.Resampling.BILINEAR)"""
_LETTERBOX = """\
image = Image.open("image.jpg").convert("RGB")
scale = min({width} / image.width, {height} / image.height)
resized = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
scale_x, scale_y = resized.width / image.width, resized.height / image.height
left, top = ({width} - resized.width) // 2, ({height} - resized.height) // 2
canvas = Image.new("RGB", ({width}, {height}), (114, 114, 114))
canvas.paste(resized, (left, top))"""
_RUN = """\
import numpy as np, onnxruntime
from PIL import Image
{place}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
images = np.asarray(canvas, dtype=np.float32).transpose(2, 0, 1)[None] / 255  # (1, 3, {height}, {width})
{read}
{back}  # xyxy in pixels of image.jpg"""
_FROM_STRETCHED = "boxes = boxes * ([image.width / {width}, image.height / {height}] * 2)"
_FROM_LETTERBOXED = "boxes = (boxes - [left, top, left, top]) / [scale_x, scale_y, scale_x, scale_y]"
_FINAL = """\
boxes, scores, labels = (output[0] for output in session.run(["boxes", "scores", "labels"], {"images": images}))
boxes, scores, labels = boxes[labels >= 0], scores[labels >= 0], labels[labels >= 0]"""
_ALL = """\
boxes, scores = (output[0] for output in session.run(["boxes", "scores"], {"images": images}))
row, labels = np.nonzero(scores > 0.3)  # suppression is left to you, or export with nms=true
boxes, scores = boxes[%s], scores[row, labels]"""


def model_card(
    student: Detector,
    graph: Graph,
    formats: Sequence[str],
    hashes: Mapping[str, str],
    parities: Mapping[str, Parity],
    images: int,
    provenance: Provenance,
) -> str:
    """The card, in Markdown. All that comes from files is escaped; nothing of time, machine or folder is in it.

    Args:
        graph: as in the files. hashes: sha256 of each file by name. parities: of the files that were compared on ``images`` images.
    """
    spec = student.spec
    shape = f"{'B' if graph.any_batch else '1'}, 3, {spec.image_size[0]}, {spec.image_size[1]}"
    parts = [
        f"# {markdown_text(type(student).__name__)}, {len(spec.classes)} classes, {spec.image_size[1]} x {spec.image_size[0]} px",
        "An object detector written by `python -m detkd.export`.",
        f"## Input\n\n`images`: ({shape}) float32, RGB, from 0 to 1. The mean and deviation that the network wants are applied inside. "
        + _how(spec.resize),
        f"## Output\n\n{_outputs(graph, len(spec.classes))}",
        f"## Classes\n\n{', '.join(f'{i} {markdown_code(name)}' for i, name in enumerate(spec.classes))}",
        f"## How it was trained\n\n{_training(provenance)}",
        f"## Scores\n\n{_scores(provenance)}",
        f"## Files\n\n{_files(hashes, parities, images)}",
    ]
    if "onnx" in formats:
        parts.append(f"## How to run it\n\n```python\n{_snippet(graph, spec.image_size, spec.resize)}\n```")
    if "exported_program" in formats:
        parts.append(
            '`torch.export.load("model.pt2").module()(images)` gives the same outputs as a tuple'
            + (", after `import torchvision`, whose operators it uses." if _uses_torchvision(graph) else ".")
        )
    if "darknet" in formats:
        parts.append(
            "`model.cfg`, `model.weights` and `model.names` are darknet's formats. Its own programs letterbox images."
            + (
                ""
                if spec.resize == "letterbox"
                else " This student was made for stretched ones: scores of darknet's programs differ."
            )
        )
    return "\n\n".join([*parts, _BEFORE]) + "\n"


def _uses_torchvision(graph: Graph) -> bool:
    return "labels" in graph.outputs or not graph.any_batch


def _how(resize: str) -> str:
    if resize == "letterbox":
        return "Another size is brought to this one with its aspect ratio kept, centred on grey 114."
    return "Another size is stretched to this one on both axes."


def _outputs(graph: Graph, classes: int) -> str:
    batch = "B" if graph.any_batch else "1"
    if "labels" in graph.outputs:
        return (
            f"Detections after suppression, best first: `boxes` ({batch}, D, 4) float32, xyxy in pixels of the input; `scores` ({batch}, D); "
            f"`labels` ({batch}, D) int64. Rows beyond what was found have label -1 and score 0."
        )
    if graph.any_batch:
        return (
            f"All boxes, without suppression: `boxes` (B, N, 4) float32, xyxy in pixels of the input; `scores` (B, N, {classes}), "
            "of each class from 0 to 1."
        )
    return (
        f"What is said of N proposals, without suppression within classes: `boxes` (1, N, {classes}, 4) float32, of each class its own, xyxy in "
        f"pixels of the input; `scores` (1, N, {classes}). Rows without a proposal have score 0."
    )


def _training(provenance: Provenance) -> str:
    lines = []
    if provenance.source is not None:
        lines.append(f"checkpoint: {markdown_code(provenance.source)}, sha256 `{provenance.sha256}`")
    about = provenance.about
    for key in ("teacher_sha256", "data_sha256", "steps", "seed"):
        if isinstance(about.get(key), str | int):
            lines.append(f"{key}: {markdown_code(str(about[key]))}")
    for key, value in provenance.training.items():
        if key not in ("steps", "seed"):
            lines.append(f"{markdown_code(key)}: {markdown_code(str(value))}")
    return "\n".join(f"- {line}" for line in lines) or "Nothing is recorded."


def _scores(provenance: Provenance) -> str:
    known = {key: provenance.scores.get(key) for key in _SCORES}
    lines = [f"| {key} | {_value(value)} |" for key, value in known.items() if isinstance(value, str | int | float)]
    return "\n".join(["| score | value |", "|---|---|", *lines]) if lines else "None are recorded."


def _value(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else markdown_text(str(value))


def _files(hashes: Mapping[str, str], parities: Mapping[str, Parity], images: int) -> str:
    lines = [
        f"| {name} | `{digest}` | {_checked(name, parities.get(name), images)} |" for name, digest in sorted(hashes.items())
    ]
    return "\n".join(["| file | sha256 | checked against the student |", "|---|---|---|", *lines])


def _checked(name: str, parity: Parity | None, images: int) -> str:
    if parity is None:
        return (
            f"opens to the same outputs, bit for bit, on {images} images"
            if name.endswith((".cfg", ".weights"))
            else "opens to the same classes"
        )
    if parity.passed() is None:
        return f"not checked: the student finds nothing in the {images} images that it was looked at with"
    of_all, said = parity.detections, [f"on {images} images"]
    if {"boxes", "scores"} <= set(parity.outputs):
        boxes, scores = (_at_most(parity.outputs[name].absolute) for name in ("boxes", "scores"))
        what = f"{parity.rows.matched} proposals" if parity.rows.matched else "all sites"
        said.append(f"{what}: boxes within {boxes} px, scores within {scores};")
    within = f": boxes within {_at_most(of_all.box)} px, scores within {_at_most(of_all.score)}" if of_all.matched else ""
    return " ".join([*said, f"{of_all.matched} detections{within}"])


def _at_most(value: float) -> str:
    """A number of two digits that is not below the value."""
    return f"{float(Context(prec=2, rounding=ROUND_UP).create_decimal(repr(value))):.2g}"


def _snippet(graph: Graph, image_size: tuple[int, int], resize: str) -> str:
    height, width = image_size
    place, back = (_LETTERBOX, _FROM_LETTERBOXED) if resize == "letterbox" else (_STRETCH, _FROM_STRETCHED)
    read = _FINAL if "labels" in graph.outputs else _ALL % ("row" if graph.any_batch else "row, labels")
    placed, taken_back = place.format(height=height, width=width), back.format(height=height, width=width)
    return _RUN.format(place=placed, height=height, width=width, read=read, back=taken_back)
