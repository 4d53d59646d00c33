"""The demo's results as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from detkd.boxes import xywh_to_xyxy
from detkd.data.coco import CocoDataset
from detkd.inversion.pictures import picture_grid
from detkd.structures import Target

ROWS = {
    "teacher": "teacher: the frozen detector",
    "student": "data-free student: trained on the inverted images alone",
    "noise": "control: trained on pure noise for as many steps",
    "real": "for comparison: trained on real scenes for as many steps",
}
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem 1rem; border-bottom: 1px solid #8886; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; } figure { margin: 1.5rem 0; }
"""


def demo_page(out: Path, results: Mapping[str, float]) -> str:
    """The page for a finished demo in ``out``."""
    names = [name for name in ROWS if f"{name}_ap50" in results]
    teacher = results["teacher_ap50"]
    rows = "".join(
        f"<tr><td>{html.escape(ROWS[n])}</td><td class=number>{results[f'{n}_ap50']:.3f}</td>"
        f"<td class=number>{results[f'{n}_ap50'] / max(teacher, 1e-9):.2f}</td></tr>"
        for n in names
    )
    figures = [_figure(inverted_picture(out / "images"), "Inverted images and the boxes that were asked for")]
    figures += [
        _figure(found_picture(out, name), f"Detections with score above .3 on unseen scenes &mdash; {html.escape(ROWS[name])}")
        for name in names
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>detkd demo</title><style>{STYLE}</style><h1>From a frozen detector to a student, without data</h1>"
        f"<table><tr><th>detector<th>AP50 on unseen scenes<th>of the teacher</tr>{rows}</table>"
        f"<p>{results['seconds']:.0f} seconds in all.</p>{''.join(figures)}</html>\n"
    )


def inverted_picture(root: Path, count: int = 24) -> Tensor:
    """The first inverted images of a store with their boxes, uint8 (3, h, w)."""
    shard = json.loads((root / "manifest.json").read_text())
    height, width = shard["image_size"]
    dataset = CocoDataset(root, image_size=(height, width), resize="stretch", length=None)
    samples = [dataset[i] for i in range(min(count, len(dataset)))]
    targets: list[Target] = [s["target"] for s in samples if s["target"] is not None]
    return picture_grid(torch.stack([s["image"] for s in samples]), targets, dataset.classes)


def found_picture(out: Path, name: str, count: int = 8, threshold: float = 0.3) -> Tensor:
    """What a detector found in the first scenes, uint8 (3, h, w)."""
    scenes = json.loads((out / "scenes/instances.json").read_text())
    label_of = {category["id"]: label for label, category in enumerate(scenes["categories"])}
    classes = [category["name"] for category in scenes["categories"]]
    found = json.loads((out / f"{name}_scores/detections.json").read_text())
    images, targets = [], []
    for entry in scenes["images"][:count]:
        with Image.open(out / "scenes/images" / entry["file_name"]) as image:
            images.append(pil_to_tensor(image.convert("RGB")))
        targets.append(_target([d for d in found if d["image_id"] == entry["id"] and d["score"] > threshold], label_of))
    return picture_grid(torch.stack(images), targets, classes)


def _target(detections: list[dict[str, Any]], label_of: Mapping[int, int]) -> Target:
    boxes = xywh_to_xyxy(torch.tensor([d["bbox"] for d in detections]).reshape(-1, 4))
    return {"boxes": boxes, "labels": torch.tensor([label_of[d["category_id"]] for d in detections], dtype=torch.long)}


def _figure(picture: Tensor, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<figure><figcaption>{caption}</figcaption><img alt='{caption}' src='data:image/png;base64,{data}'></figure>"
