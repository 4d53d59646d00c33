"""The dataset on disk that inversion writes and distillation reads: shards of PNG, a COCO json, and a manifest of its making.

    manifest.json               what made it, and once complete the scores of each image and a checksum of each shard
    instances.json              COCO annotations of all images; merged once at the end
    shards/000012/000096.png    image at position 96 of shard 12
    shards/000012/shard.json    its targets and scores, and the checksum of each image

Nothing in these files depends on the time, the machine, the folder, or which process wrote which shard.
"""

from __future__ import annotations

import io
import json
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from detkd.data.annotations import coco_json
from detkd.data.manifest import FORMAT, VERSION, read_manifest
from detkd.disk import create_file, differences, dump_json, parse_json, read_checked, replace_file, sha256
from detkd.errors import InputError
from detkd.structures import Target

# what makes two runs the same run
_IDENTITY = ("format", "version", "recipe", "teacher_sha256", "seed", "classes", "image_size")


class Shard(NamedTuple):
    """images (B, 3, H, W) uint8 RGB, a target an image, and the scores that were recorded for each."""

    images: Tensor
    targets: list[Target]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Store:
    """A complete store, as opened."""

    root: Path
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    teacher_sha256: str
    seed: int
    recipe: dict[str, Any]
    records: list[dict[str, Any]]
    n_shards: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def read_shard(self, index: int) -> Shard:
        """Images, targets and records of one shard."""
        return _read_shard(self.root, index)


class StoreWriter:
    """Write a store shard by shard; what is there already is kept, so that an interrupted run goes on.

    Args:
        root: made if missing. Any number of processes may construct a writer on it at once.
        recipe: all that determines the content, json-able. classes: label i is ``classes[i]``. image_size: (height, width).
        teacher_sha256: of the weights that were inverted. seed: of the whole set.
        beside: fnmatch patterns of other files that may be in ``root``, such as a log; hidden files always may.

    Raises InputError when ``root`` holds a store of another recipe (the message shows the keys that differ) or other files.
    """

    def __init__(
        self,
        root: str | Path,
        recipe: Mapping[str, Any],
        classes: Sequence[str],
        image_size: tuple[int, int],
        *,
        teacher_sha256: str,
        seed: int,
        beside: Collection[str] = (),
    ) -> None:
        self.root = Path(root)
        self.classes = tuple(classes)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        header = {
            "format": FORMAT,
            "version": VERSION,
            "complete": False,
            "recipe": recipe,
            "recipe_sha256": sha256(dump_json(recipe)),
            "teacher_sha256": teacher_sha256,
            "seed": seed,
            "classes": list(self.classes),
            "image_size": list(self.image_size),
        }
        self._header: dict[str, Any] = json.loads(dump_json(header))
        self._claim(beside)
        (self.root / "shards").mkdir(exist_ok=True)

    def finished(self) -> set[int]:
        """Indices of the shards that are there."""
        return {int(p.name) for p in (self.root / "shards").iterdir() if p.name.isdigit() and (p / "shard.json").is_file()}

    def write_shard(
        self, index: int, images: Tensor, targets: Sequence[Target], records: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Write a whole shard, or nothing.

        images: (B, 3, H, W) uint8 RGB of the store's size. targets: boxes of positive extent inside the image.
        records: json-able scores of each image.

        A shard that is there already with the same content is left as it is. Raises InputError when its content differs, ValueError
        when the arguments do not fit each other or the store.
        """
        records = [{} for _ in targets] if records is None else records
        self._check(index, images, targets, records)
        files = {f"{i:06d}.png": _png(image) for i, image in enumerate(images.cpu())}
        entries = [
            {
                "file_name": name,
                "sha256": sha256(content),
                "boxes": target["boxes"].float().tolist(),
                "labels": target["labels"].tolist(),
                "record": record,
            }
            for (name, content), target, record in zip(files.items(), targets, records)
        ]
        files["shard.json"] = dump_json({"images": entries})
        final = _shard_folder(self.root, index)
        temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}.tmp"
        temporary.mkdir()
        try:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            try:
                temporary.rename(final)
            except OSError:
                # a folder that is not empty is not replaced: the shard is there already
                if not (final / "shard.json").is_file():
                    raise
                if (final / "shard.json").read_bytes() != files["shard.json"]:
                    raise InputError(f"{final}: expected the content that its recipe makes, found another; remove it") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read_shard(self, index: int) -> Shard:
        """Images, targets and records of one shard. Raises InputError where it is missing or damaged."""
        return _read_shard(self.root, index)

    def finish(self, n_shards: int) -> Store:
        """Merge ``n_shards`` shards into instances.json and mark the store complete; to be called by one process, at the end.

        Raises InputError when a shard is missing or there are more.
        """
        found = self.finished()
        if found != set(range(n_shards)):
            missing, extra = sorted(set(range(n_shards)) - found), sorted(found - set(range(n_shards)))
            raise InputError(f"{self.root}: expected shards 0 to {n_shards - 1}, missing are {missing}, beyond them {extra}")
        paths = [_shard_folder(self.root, i) / "shard.json" for i in range(n_shards)]
        contents = [path.read_bytes() for path in paths]
        shards = [_entries(parse_json(content, path), path.parent) for content, path in zip(contents, paths)]
        named = [(f"shards/{path.parent.name}/{e['file_name']}", e) for path, entries in zip(paths, shards) for e in entries]
        annotated = [(name, entry["boxes"], entry["labels"]) for name, entry in named]
        instances = dump_json(coco_json(annotated, self.classes, self.image_size))
        records = [entry["record"] for _, entry in named]
        manifest = self._header | {
            "complete": True,
            "images": len(records),
            "records": records,
            "shards": [{"images": len(entries), "sha256": sha256(content)} for entries, content in zip(shards, contents)],
            "instances_sha256": sha256(instances),
        }
        for leftover in (self.root / "shards").glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        replace_file(self.root / "instances.json", instances)
        replace_file(self.root / "manifest.json", dump_json(manifest))
        return open_store(self.root)

    def withdraw(self) -> None:
        """Give the folder up again if no shard was written, so that a corrected run may have it."""
        if not self.finished():
            shutil.rmtree(self.root / "shards", ignore_errors=True)
            (self.root / "manifest.json").unlink(missing_ok=True)

    def _claim(self, beside: Collection[str]) -> None:
        """Leave this run's manifest in the folder, or find it there."""
        manifest = self.root / "manifest.json"
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: expected a folder to write to, found a file")
        self.root.mkdir(parents=True, exist_ok=True)
        # listed before the manifest is looked for, because the manifest is the first file of a store
        others = sorted(p.name for p in self.root.iterdir() if not p.name.startswith("."))
        if not manifest.exists():
            if foreign := [n for n in others if not any(fnmatch(n, pattern) for pattern in beside)]:
                raise InputError(f"{self.root}: expected an empty folder or a store of this run, found {foreign[:10]}")
            create_file(manifest, dump_json(self._header))
        there = read_manifest(self.root)
        if differing := sorted(differences({k: there.get(k) for k in _IDENTITY}, {k: self._header[k] for k in _IDENTITY})):
            raise InputError(
                f"{self.root}: expected a store of this run, but it holds another run's; it differs in {'; '.join(differing[:20])}"
            )

    def _check(self, index: int, images: Tensor, targets: Sequence[Target], records: Sequence[Mapping[str, Any]]) -> None:
        if index < 0:
            raise ValueError(f"expected a shard index from 0, got {index}")
        if (
            images.dtype != torch.uint8
            or images.ndim != 4
            or tuple(images.shape[1:]) != (3, *self.image_size)
            or not len(images)
        ):
            raise ValueError(f"expected uint8 images (B, 3, *{self.image_size}), got {images.dtype} {tuple(images.shape)}")
        if not len(images) == len(targets) == len(records):
            raise ValueError(f"expected {len(images)} targets and records, got {len(targets)} and {len(records)}")
        height, width = self.image_size
        for i, target in enumerate(targets):
            boxes, labels = target["boxes"].float(), target["labels"]
            if boxes.shape != (len(labels), 4):
                raise ValueError(f"expected boxes (n, 4) for {len(labels)} labels of image {i}, got {tuple(boxes.shape)}")
            inside = (boxes >= 0) & (boxes <= boxes.new_tensor([width, height, width, height]))  # false for nan
            if not (bool(inside.all()) and bool((boxes[:, 2:] > boxes[:, :2]).all())):
                raise ValueError(
                    f"expected boxes of positive extent inside {width} x {height} pixels in image {i}, got {boxes}"
                )
            if not bool(((labels >= 0) & (labels < len(self.classes))).all()):
                raise ValueError(f"expected labels from 0 to {len(self.classes) - 1} in image {i}, got {labels}")


def open_store(root: str | Path, *, verify: bool = False) -> Store:
    """Open a complete store and check it against its checksums; with ``verify`` also every image file.

    Raises InputError naming the file when there is no store, it is of another version, incomplete, damaged or changed.
    """
    root = Path(root)
    manifest = read_manifest(root)
    if manifest.get("complete") is not True:
        raise InputError(f"{root}: expected a complete store, found one that is being written or was interrupted")
    read_checked(root / "instances.json", manifest["instances_sha256"])
    for index, shard in enumerate(manifest["shards"]):
        folder = _shard_folder(root, index)
        content = read_checked(folder / "shard.json", shard["sha256"])
        if verify:
            for entry in _entries(parse_json(content, folder / "shard.json"), folder):
                read_checked(folder / entry["file_name"], entry["sha256"])
    return Store(
        root=root,
        classes=tuple(manifest["classes"]),
        image_size=(manifest["image_size"][0], manifest["image_size"][1]),
        teacher_sha256=manifest["teacher_sha256"],
        seed=manifest["seed"],
        recipe=manifest["recipe"],
        records=manifest["records"],
        n_shards=len(manifest["shards"]),
    )


def holds_store(root: str | Path) -> bool:
    """Whether a folder holds a store, complete or not, sound or not."""
    try:
        manifest = json.loads((Path(root) / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def find_latest_store(runs_dir: str | Path, teacher_sha256: str) -> Path | None:
    """The complete store of this teacher under ``runs_dir``, at most 4 folders deep, whose manifest was written last; or None.

    Manifests that cannot be read are passed over.
    """
    found: list[tuple[float, Path]] = []
    for depth in range(5):
        for path in Path(runs_dir).glob("*/" * depth + "manifest.json"):
            try:
                manifest = read_manifest(path.parent)
            except InputError:
                continue
            if manifest["complete"] and manifest["teacher_sha256"] == teacher_sha256:
                found.append((path.stat().st_mtime, path.parent))
    return max(found)[1] if found else None


def _read_shard(root: Path, index: int) -> Shard:
    folder = _shard_folder(root, index)
    try:
        entries = _entries(parse_json((folder / "shard.json").read_bytes(), folder / "shard.json"), folder)
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


def _entries(shard: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    keys = {"file_name", "sha256", "boxes", "labels", "record"}
    entries = shard.get("images")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and keys <= set(e) for e in entries):
        raise InputError(f"{folder / 'shard.json'}: expected a list 'images' of entries with the keys {sorted(keys)}")
    if not all(e["file_name"] == f"{i:06d}.png" for i, e in enumerate(entries)):
        raise InputError(f"{folder / 'shard.json'}: expected the file names 000000.png, 000001.png, ...")
    return entries


def _shard_folder(root: Path, index: int) -> Path:
    return root / "shards" / f"{index:06d}"


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="PNG")  # (H, W, 3)
    return buffer.getvalue()
