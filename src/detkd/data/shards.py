"""A shard: a folder with one batch of images of a store, written whole or not at all.

shards/000012/000096.png    image at position 96 of shard 12
shards/000012/000096.txt    its boxes for YOLO readers
shards/000012/shard.json    targets, scores and checksum of each image, and the course of the batch
"""

from __future__ import annotations

import io
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from detkd.data.yolo_txt import yolo_lines
from detkd.disk import dump_json, parse_json, read_checked, sha256
from detkd.errors import InputError
from detkd.structures import Target


class Shard(NamedTuple):
    """images (B, 3, H, W) uint8 RGB, a target an image, and the scores that were recorded for each."""

    images: Tensor
    targets: list[Target]
    records: list[dict[str, Any]]


def shard_folder(root: Path, index: int) -> Path:
    """Where shard ``index`` of the store in ``root`` lies."""
    return root / "shards" / f"{index:06d}"


def write_shard(
    root: Path,
    index: int,
    images: Tensor,
    targets: Sequence[Target],
    records: Sequence[Mapping[str, Any]],
    trace: Mapping[str, Any] | None = None,
) -> None:
    """Write a shard beside its place, then move it there in one step.

    images: (B, 3, H, W) uint8 RGB. targets: one an image, boxes xyxy in pixels. records, trace: json-able.

    A shard that is there already with the same content is left. Raises InputError when its content differs, OSError when it
    cannot be written.
    """
    size = (images.shape[-2], images.shape[-1])
    files: dict[str, bytes] = {}
    entries = []
    for position, (image, target, record) in enumerate(zip(images.cpu(), targets, records, strict=True)):
        name, content = f"{position:06d}.png", _png(image)
        files[name] = content
        files[f"{position:06d}.txt"] = yolo_lines(target["boxes"], target["labels"], size).encode()
        entries.append(
            {
                "file_name": name,
                "sha256": sha256(content),
                "boxes": target["boxes"].float().tolist(),
                "labels": target["labels"].tolist(),
                "record": dict(record),
            }
        )
    shard = {"images": entries, "trace": dict(trace or {})}
    files["shard.json"] = dump_json(shard | {"sha256": sha256(dump_json(shard))})
    final = shard_folder(root, index)
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        try:
            temporary.rename(final)
        except OSError:
            # a folder that is not empty is not replaced: the shard is there already, or what a lost disk left of one
            if not (final / "shard.json").is_file():
                shutil.rmtree(final)
                temporary.rename(final)
            elif (final / "shard.json").read_bytes() != files["shard.json"]:
                raise InputError(f"{final}: expected the content that its recipe makes, found another; remove it") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_shard(root: Path, index: int) -> Shard:
    """Images, targets and records of one shard. Raises InputError where it is missing or damaged."""
    folder = shard_folder(root, index)
    try:
        entries = parse_shard((folder / "shard.json").read_bytes(), folder)["images"]
        images = []
        for entry in entries:
            content = read_checked(folder / entry["file_name"], entry["sha256"])
            images.append(pil_to_tensor(Image.open(io.BytesIO(content), formats=("PNG",))))
    except OSError as error:
        raise InputError(f"{folder}: expected a shard of the store, but it cannot be read: {error}") from error
    targets = [
        Target(
            boxes=torch.tensor(entry["boxes"], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(entry["labels"], dtype=torch.int64),
        )
        for entry in entries
    ]
    return Shard(torch.stack(images), targets, [entry["record"] for entry in entries])  # (B, 3, H, W)


def read_trace(root: Path, index: int) -> dict[str, Any]:
    """The course of a batch as its shard has it; empty where it has none. Raises InputError where it is missing or damaged."""
    folder = shard_folder(root, index)
    try:
        trace = parse_shard((folder / "shard.json").read_bytes(), folder).get("trace")
    except OSError as error:
        raise InputError(f"{folder}: expected a shard of the store, but it cannot be read: {error}") from error
    return trace if isinstance(trace, dict) else {}


def check_shard(root: Path, index: int, content: bytes) -> None:
    """Raise InputError when a file of the shard is not what ``content``, that of its shard.json, says, or that is not as written."""
    folder = shard_folder(root, index)
    shard = parse_shard(content, folder)
    expected = shard.pop("sha256", None)
    if expected is not None and expected != sha256(dump_json(shard)):
        raise InputError(f"{folder / 'shard.json'}: expected its own checksum {expected}: it was damaged or changed")
    for entry in shard["images"]:
        image = read_checked(folder / entry["file_name"], entry["sha256"])
        labels = folder / entry["file_name"].replace(".png", ".txt")
        with Image.open(io.BytesIO(image), formats=("PNG",)) as opened:
            size = (opened.height, opened.width)
        boxes = torch.tensor(entry["boxes"], dtype=torch.float32).reshape(-1, 4)
        lines = yolo_lines(boxes, torch.tensor(entry["labels"], dtype=torch.int64), size).encode()
        if expected is not None:  # shards of older sets have no labels beside the images
            read_checked(labels, sha256(lines))


def parse_shard(content: bytes, folder: Path) -> dict[str, Any]:
    """The content of a shard.json, with all the keys that its images have. Raises InputError naming the file otherwise."""
    shard = parse_json(content, folder / "shard.json")
    keys = {"file_name", "sha256", "boxes", "labels", "record"}
    entries = shard.get("images")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and keys <= set(e) for e in entries):
        raise InputError(f"{folder / 'shard.json'}: expected a list 'images' of entries with the keys {sorted(keys)}")
    if not all(e["file_name"] == f"{i:06d}.png" for i, e in enumerate(entries)):
        raise InputError(f"{folder / 'shard.json'}: expected the file names 000000.png, 000001.png, ...")
    return shard


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="PNG")  # (H, W, 3)
    return buffer.getvalue()
