"""The dataset card: README.md of a set, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from detkd.data.escape import markdown_code, markdown_text, yaml_string
from detkd.data.store import Store

TOP_CLASSES = 20
_LONGEST = 8  # items of a list that are shown
_MEANS = ("teacher_score", "teacher_iou", "agreement", "verifier_score", "verifier_iou", "loss")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))

_INVERTED = """\
No camera took these images. Each one was optimised until a frozen object detector (the teacher) saw in it the objects whose boxes lie beside it
(model inversion, as in DIODE; Chawla et al., WACV 2021). Boxes and classes are what the image was made for, or what the teacher found
in it on the way. No person drew or checked them."""
_TILED = """\
Each image is laid out from one or several images of another set, and the boxes with them. If that set was made by inverting a detector, no camera took
these images and no person drew or checked their boxes."""
_BEFORE = """\
## Before you share or use it

- **Licence.** These images are derived from the teacher. The licence of its weights, and the terms of the data that it was trained on, may apply to
  them. Nobody has settled that for you; `license: other` above is a placeholder.
- **Privacy.** Images derived from a model may leak what it was trained on: faces, text, places. They look synthetic; that is no proof that they
  hold nothing of a training image. Treat them as you would treat the training data until you have checked.
- **Use.** They are made for training another detector to agree with this teacher. They inherit its errors and biases, and a score on them says
  nothing about real images."""
_LOADING = """\
## How to load it

With `DIR` as the folder of this file:

```python
from detkd.data.coco import CocoDataset

dataset = CocoDataset("DIR", image_size=({height}, {width}), resize="stretch")
image, target = dataset[0]["image"], dataset[0]["target"]  # uint8 (3, H, W); boxes xyxy in pixels, labels from 0
```

```python
from pycocotools.coco import COCO

coco = COCO("DIR/instances.json")
file_name = coco.loadImgs(1)[0]["file_name"]  # relative to DIR
boxes = [a["bbox"] for a in coco.loadAnns(coco.getAnnIds(imgIds=1))]  # x, y, width, height in pixels; category ids from 1
```

```bash
yolo train model=yolo11n.yaml data=DIR/data.yaml imgsz={side}   # ultralytics; no part of the path to DIR may be named images
python -m detkd.distill data.root=DIR
python -m detkd.gallery data.root=DIR    # all images with boxes and scores: then open DIR/gallery/index.html
```"""


def dataset_card(
    store: Store, labels: Sequence[Sequence[int]], scores: Mapping[str, Any] | None = None, duplicates: int | None = None
) -> str:
    """The card of a set, in Markdown.

    Args:
        store: the set. labels: of each image the labels of its objects.
        scores: what is known of AP50 on the stored images, each a fraction or None: ``teacher_ap50``, ``verifier_ap50``;
            ``teacher_by_size``, ``verifier_by_size``: by small, medium, large; ``teacher_by_class``, ``verifier_by_class``: by class
            name. Other keys are passed over.
        duplicates: how many images were flagged as near-duplicates; None where nobody looked.

    The same for the same set, whenever, wherever and under whatever name of folder; file names in the recipe lose their folders. Names of
    classes and all else that the set brings is escaped. Raises ValueError where there are not as many labels as images.
    """
    if len(labels) != len(store):
        raise ValueError(f"expected the labels of {len(store)} images, got {len(labels)}")
    scores = {} if scores is None else scores
    tiled = isinstance(store.recipe, dict) and store.recipe.get("kind") == "tiling"
    height, width = store.image_size
    name = f"{len(store):,} {'tiled' if tiled else 'inverted'} images of {len(store.classes)} classes"
    parts = [
        _front_matter(name, len(store)),
        f"# {name}",
        _TILED if tiled else _INVERTED,
        _BEFORE,
        "## What is in it\n\n" + _table(("", ""), _contents(store, labels, duplicates)),
        f"### Classes\n\n{_class_table(store, labels, scores)}",
        "## How good it is\n\n" + _quality(store, scores),
        "## How it was made\n\n" + _table(("setting", "value"), _making(store)),
        _LOADING.format(height=height, width=width, side=max(height, width)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, images: int) -> str:
    size = next((label for limit, label in _SIZES if images < limit), "10M<n<100M")
    tags = ("object-detection", "synthetic", "model-inversion", "data-free", "knowledge-distillation", "detkd")
    lines = [
        f"pretty_name: {yaml_string(name)}",
        "license: other",
        "license_name: derived-from-the-teacher",
        "annotations_creators:\n- machine-generated",
        "task_categories:\n- object-detection",
        f"size_categories:\n- {size}",
        "tags:\n" + "\n".join(f"- {tag}" for tag in tags),
    ]
    return "---\n" + "\n".join(lines) + "\n---"


def _contents(store: Store, labels: Sequence[Sequence[int]], duplicates: int | None) -> Iterator[tuple[str, str]]:
    height, width = store.image_size
    objects = sum(map(len, labels))
    yield "images", f"{len(store):,}"
    yield "size", f"{width} x {height} pixels, PNG"
    yield "objects", f"{objects:,}"
    yield "objects an image", f"{objects / max(1, len(store)):.2f}" + _before(store)
    yield "images without an object", f"{sum(not of for of in labels):,}"
    if duplicates is not None:
        yield "near-duplicates (duplicates.json)", f"{duplicates:,} ({duplicates / max(1, len(store)):.1%})"
    yolo = ", a .txt beside each image and data.yaml (YOLO)" if (store.root / "data.yaml").is_file() else ""
    yield "annotations", f"instances.json (COCO){yolo}"
    yield "scores of each image", "manifest.json, `records`"


def _before(store: Store) -> str:
    starts = _numbers(store, "objects_start")
    return f" ({sum(starts) / len(starts):.2f} asked for, before those that the teacher found were added)" if starts else ""


def _class_table(store: Store, labels: Sequence[Sequence[int]], scores: Mapping[str, Any]) -> str:
    objects = Counter(label for of in labels for label in of)
    images = Counter(label for of in labels for label in set(of))
    judged = [(name, scores[f"{name}_by_class"]) for name in ("teacher", "verifier") if scores.get(f"{name}_by_class")]
    rows = []
    order = sorted(objects, key=lambda label: (-objects[label], label))
    for label in order[:TOP_CLASSES]:
        name = store.classes[label]
        rows.append(
            (markdown_text(name), f"{objects[label]:,}", f"{images[label]:,}", *(_score(by.get(name)) for _, by in judged))
        )
    table = _table(("class", "objects", "images", *(f"{name} AP50" for name, _ in judged)), rows)
    notes = []
    if len(order) > TOP_CLASSES:
        notes.append(f"{len(order) - TOP_CLASSES} more classes have {sum(objects[i] for i in order[TOP_CLASSES:]):,} objects.")
    if absent := len(store.classes) - len(order):
        notes.append(f"{absent} of {len(store.classes)} classes have no object.")
    return "\n\n".join([table, *([" ".join(notes)] if notes else [])])


def _quality(store: Store, scores: Mapping[str, Any]) -> str:
    rows = []
    for name in ("teacher", "verifier"):
        if scores.get(f"{name}_ap50") is not None:
            rows.append((f"{name} AP50", _score(scores[f"{name}_ap50"])))
        for size, value in (scores.get(f"{name}_by_size") or {}).items():
            if value is not None:
                rows.append((f"{name} AP50, {markdown_text(str(size))} boxes", _score(value)))
    for key in _MEANS:
        if values := _numbers(store, key):
            rows.append((f"mean {key.replace('_', ' ').replace('iou', 'IoU')}", f"{sum(values) / len(values):.3f}"))
    if judged := [r["accepted"] for r in store.records if isinstance(r.get("accepted"), bool)]:
        rows.append(("accepted", f"{sum(judged):,} of {len(judged):,} ({sum(judged) / len(judged):.1%})"))
    if not rows:
        return "Nobody has scored it."
    note = (
        "AP50 is of detections on the stored images against the boxes of the set. The teacher's says that the optimisation worked, not that the "
        "images are good: it was optimised. A verifier took no part in that. Agreement is how far the teacher's findings survive small "
        "changes of an image."
    )
    return f"{_table(('score', 'value'), rows)}\n\n{note}"


def _making(store: Store) -> Iterator[tuple[str, str]]:
    recipe = store.recipe if isinstance(store.recipe, dict) else {}
    yield "sha256 of the teacher's weights", markdown_code(store.teacher_sha256 or "unknown")
    yield "seed", markdown_code(str(store.seed))
    for key, value in _rows(recipe, ""):
        if key != "seed":
            yield markdown_code(key), markdown_code(_text(value))


def _rows(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The settings by dotted key: components in one piece, groups of them one by one; what was taken out (null in a group) is left out."""
    for name, value in sorted(node.items()):
        key = f"{prefix}{name}"
        if isinstance(value, dict) and "_target_" not in value and any(isinstance(v, dict) for v in value.values()):
            yield from _rows({k: v for k, v in value.items() if v is not None}, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for number, item in enumerate(value[:_LONGEST], start=1):
                yield f"{key} {number}", item
        else:
            yield key, value


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        order = sorted(value, key=lambda k: (int(k) if k.isdecimal() else -1, k))
        items = [f"{k}={_text(value[k])}" for k in order if k != "_target_"]
        target = str(value["_target_"]).rpartition(".")[2] if "_target_" in value else ""
        return f"{target}({_cut(items)})" if target else _cut(items) or "none"
    if isinstance(value, list):
        return f"[{_cut([_text(v) for v in value])}]"
    return f"{value:g}" if isinstance(value, float) else _without_folder(str(value))


def _cut(items: list[str]) -> str:
    return ", ".join(items) if len(items) <= _LONGEST else f"{', '.join(items[:_LONGEST])}, ... {len(items)} in all"


def _without_folder(text: str) -> str:
    """The text; of a path that says where something lies on a machine, the name alone."""
    if PurePosixPath(text).is_absolute() or text.startswith("~"):
        return PurePosixPath(text).name
    return PureWindowsPath(text).name if PureWindowsPath(text).drive else text


def _numbers(store: Store, key: str) -> list[float]:
    values = [record.get(key) for record in store.records]
    return [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _score(value: Any) -> str:
    return "-" if value is None else f"{float(value):.3f}"


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
