"""The dataset on disk that inversion writes and distillation reads: shards of PNG, a COCO json, and a manifest of its making.

    manifest.json               what made it, and once complete the scores of each image and a checksum of each shard
    instances.json              COCO annotations of all images; merged once at the end
    data.yaml, train.txt        the same for YOLO readers; the boxes of an image lie beside it as txt
    shards/000012/              a batch of images, written whole: see shards.py
    .claims/                    while it is being made: who works on which shard

Nothing in these files depends on the time, the machine, the folder, or which process wrote which shard.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from detkd.data.annotations import coco_json
from detkd.data.claims import Claims
from detkd.data.manifest import FORMAT, VERSION, read_manifest
from detkd.data.shards import Shard, check_shard, parse_shard, read_shard, shard_folder, write_shard
from detkd.data.yolo_txt import write_yolo_index
from detkd.disk import differences, dump_json, read_checked, replace_file, sha256
from detkd.errors import InputError
from detkd.structures import Target

# what makes two runs the same run
_IDENTITY = ("format", "version", "recipe", "teacher_sha256", "seed", "classes", "image_size")


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
    rejected: str = "keep"

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def read_shard(self, index: int) -> Shard:
        """The images of one shard that are in the set, with their targets and records."""
        shard = read_shard(self.root, index)
        if self.rejected == "keep":
            return shard
        kept = [i for i, record in enumerate(shard.records) if record.get("accepted", True)]
        return Shard(shard.images[kept], [shard.targets[i] for i in kept], [shard.records[i] for i in kept])


class StoreWriter:
    """Write a store shard by shard; what is there already is kept, so that an interrupted run goes on.

    Args:
        root: made if missing. Any number of processes may construct a writer on it at once.
        recipe: all that determines the content, json-able. classes: label i is ``classes[i]``. image_size: (height, width).
        teacher_sha256: of the weights that were inverted. seed: of the whole set.
        beside: fnmatch patterns of other files that may be in ``root``, such as a log; hidden files always may.

    claims: who works on what in this folder (:class:`Claims`); close it when done.

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
        self.claims = Claims(self.root / ".claims")
        self._began = False
        self._begin(beside)

    def finished(self) -> set[int]:
        """Indices of the shards that are there."""
        return {int(p.name) for p in (self.root / "shards").iterdir() if p.name.isdigit() and (p / "shard.json").is_file()}

    def write_shard(
        self,
        index: int,
        images: Tensor,
        targets: Sequence[Target],
        records: Sequence[Mapping[str, Any]] | None = None,
        trace: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a whole shard, or nothing.

        images: (B, 3, H, W) uint8 RGB of the store's size. targets: boxes of positive extent inside the image.
        records: json-able scores of each image. trace: json-able course of the batch.

        A shard that is there already with the same content is left as it is. Raises InputError when its content differs, OSError
        when it cannot be written, ValueError when the arguments do not fit each other or the store.
        """
        records = [{} for _ in targets] if records is None else records
        self._check(index, images, targets, records)
        write_shard(self.root, index, images, targets, records, trace)

    def read_shard(self, index: int) -> Shard:
        """Images, targets and records of one shard. Raises InputError where it is missing or damaged."""
        return read_shard(self.root, index)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the claim on the files beside the shards, so that no two processes write them at once."""
        with self.claims.alone("set"):
            yield

    def repair(self) -> dict[int, str]:
        """Remove the shards that are damaged, so that they are made again; what was wrong with each, by index.

        Every image is read. A shard is damaged when it does not have its own checksums, or not those of the manifest where that is complete.
        A complete set that lacks a shard is open again: what is made now need not have the old checksums.
        """
        sums = [shard["sha256"] for shard in read_manifest(self.root).get("shards", [])]
        damaged: dict[int, str] = {}
        for index in sorted(int(p.name) for p in (self.root / "shards").iterdir() if p.name.isdigit()):
            if not self.claims.take(shard_claim(index)):
                continue  # somebody is at it
            try:
                path = shard_folder(self.root, index) / "shard.json"
                check_shard(self.root, index, read_checked(path, sums[index]) if index < len(sums) else path.read_bytes())
            except (InputError, OSError) as error:
                damaged[index] = str(error)
                aside = self.root / "shards" / f".{index:06d}.damaged.tmp"
                shutil.rmtree(aside, ignore_errors=True)
                shard_folder(self.root, index).rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
            finally:
                self.claims.release(shard_claim(index))
        if not set(range(len(sums))) <= self.finished():
            with self.alone():
                replace_file(self.root / "manifest.json", dump_json(self._header))
        return damaged

    def finish(self, n_shards: int, rejected: Literal["keep", "drop"] = "keep") -> Store:
        """Merge ``n_shards`` shards into instances.json and the YOLO index, and mark the store complete; any process, any number of times.

        rejected: "drop" leaves images whose record says ``accepted: false`` out of the index (their files stay in the shards).

        Raises InputError when a shard is missing or there are more, or no image is left.
        """
        found = self.finished()
        if found != set(range(n_shards)):
            missing, extra = sorted(set(range(n_shards)) - found), sorted(found - set(range(n_shards)))
            raise InputError(f"{self.root}: expected shards 0 to {n_shards - 1}, missing are {missing}, beyond them {extra}")
        paths = [shard_folder(self.root, i) / "shard.json" for i in range(n_shards)]
        contents = [path.read_bytes() for path in paths]
        shards = [parse_shard(content, path.parent)["images"] for content, path in zip(contents, paths)]
        named = [(f"shards/{path.parent.name}/{e['file_name']}", e) for path, entries in zip(paths, shards) for e in entries]
        if rejected == "drop":
            named = [(name, entry) for name, entry in named if entry["record"].get("accepted", True)]
        if not named:
            raise InputError(
                f"{self.root}: expected an image that was accepted, found none; keep the others (accept.rejected=keep)"
            )
        records = [entry["record"] for _, entry in named]
        instances = dump_json(coco_json([(n, e["boxes"], e["labels"]) for n, e in named], self.classes, self.image_size))
        manifest = self._header | {
            "complete": True,
            "rejected": rejected,
            "images": len(records),
            "records": records,
            "shards": [{"images": len(entries), "sha256": sha256(content)} for entries, content in zip(shards, contents)],
            "instances_sha256": sha256(instances),
        }
        with self.alone():
            self._sweep()
            replace_file(self.root / "instances.json", instances)
            write_yolo_index(self.root, [name for name, _ in named], self.classes)
            replace_file(self.root / "manifest.json", dump_json(manifest))
        return open_store(self.root)

    def withdraw(self) -> None:
        """Give the folder up again if this writer began it, no shard was written and nobody else is at it, so that a corrected run may have it."""
        if not self._began:
            return
        with self.alone():
            if not self.finished() and not self.claims.others():
                shutil.rmtree(self.root / "shards", ignore_errors=True)
                (self.root / "manifest.json").unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed processes left half-written; with the claim on the set, once all shards are there: then nobody writes."""
        if not self.claims.shared:
            return
        for leftover in (self.root / "shards").glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder, names, files in os.walk(self.root):
            names[:] = [name for name in names if name not in ("shards", self.claims.folder.name)]
            for file in files:
                if file.startswith(".") and file.endswith(".tmp"):
                    (Path(folder) / file).unlink(missing_ok=True)

    def _begin(self, beside: Collection[str]) -> None:
        """Leave this run's manifest in the folder, or find it there."""
        manifest = self.root / "manifest.json"
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: expected a folder to write to, found a file")
        self.root.mkdir(parents=True, exist_ok=True)
        with self.alone():
            self._identify(manifest, beside)
            (self.root / "shards").mkdir(exist_ok=True)

    def _identify(self, manifest: Path, beside: Collection[str]) -> None:
        others = sorted(p.name for p in self.root.iterdir() if not p.name.startswith("."))
        if not manifest.exists():
            if foreign := [n for n in others if not any(fnmatch(n, pattern) for pattern in beside)]:
                raise InputError(f"{self.root}: expected an empty folder or a store of this run, found {foreign[:10]}")
            replace_file(manifest, dump_json(self._header))
            self._began = True
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


def shard_claim(index: int) -> str:
    """The name of the claim on a shard."""
    return f"{index:06d}"


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
        content = read_checked(shard_folder(root, index) / "shard.json", shard["sha256"])
        if verify:
            check_shard(root, index, content)
    return Store(
        root=root,
        classes=tuple(manifest["classes"]),
        image_size=(manifest["image_size"][0], manifest["image_size"][1]),
        teacher_sha256=manifest["teacher_sha256"],
        seed=manifest["seed"],
        recipe=manifest["recipe"],
        records=manifest["records"],
        n_shards=len(manifest["shards"]),
        rejected=manifest.get("rejected", "keep"),
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
