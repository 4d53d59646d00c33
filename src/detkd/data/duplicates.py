"""Near-duplicates: images whose difference hashes are within a Hamming distance, found by one pass over a set.

The difference hash asks of neighbouring areas of a small grey thumbnail which is brighter, so it does not see a change of brightness or contrast,
and hardly noise or compression; a mirrored or shifted image is another image. After N. Krawetz, "Kind of Like That", 2013 (9 x 8 areas, horizontal
differences, 64 bits); here 512 bits, in both directions, from areas averaged exactly instead of a resampled thumbnail.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from detkd.data.store import Store
from detkd.disk import dump_json, replace_file, sha256_of

BITS = 512
# Unrelated images differ in about 256 bits; docs/guides/dataset.md says what this was chosen by.
DISTANCE = 64
DUPLICATES_FILE = "duplicates.json"
_SIDE = 16  # BITS = 2 * _SIDE ** 2


def difference_hash(images: Tensor) -> Tensor:
    """The hash of each image, on the device of the images.

    images: (B, 3, H, W) uint8 RGB, of any size from 1 x 1.

    Returns:
        (B, 512) bool: whether an area is darker than its right neighbour (16 x 17 areas), then than the one below (17 x 16 areas).
        Equal neighbours give false, so all images of one colour have the same hash.

    Grey is (299 R + 587 G + 114 B) / 1000. Areas are averaged in float64 over whole numbers below 2^53, which is exact, so the hash is
    the same on every machine and for every batch. Raises ValueError for other shapes and types.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    red, green, blue = images.int().unbind(1)
    grey = (299 * red + 587 * green + 114 * blue).double()  # (B, H, W)
    rows = torch.cat([_overlaps(grey.shape[1], parts, grey) for parts in (_SIDE, _SIDE + 1)]) @ grey  # (B, 33, W)
    wide = rows[:, :_SIDE] @ _overlaps(grey.shape[2], _SIDE + 1, grey).T  # (B, 16, 17)
    tall = rows[:, _SIDE:] @ _overlaps(grey.shape[2], _SIDE, grey).T  # (B, 17, 16)
    right, below = wide[:, :, :-1] < wide[:, :, 1:], tall[:, :-1] < tall[:, 1:]  # (B, 16, 16) each
    return torch.cat([right.flatten(1), below.flatten(1)], dim=1)  # (B, 512)


def near_duplicates(hashes: Tensor, distance: int = DISTANCE, chunk: int = 512) -> list[int | None]:
    """For each image the first one that it repeats, or None.

    hashes: (n, 512) bool, or any width up to 2^24. distance: in bits, from 0; a pair at exactly this distance counts.
    chunk: rows compared at once; the result does not depend on it.

    An image is flagged with the earliest image that is itself not flagged and lies within ``distance``. So no two images that are left
    are within it, and each one flagged has its like among those that are left.

    Distances are matrix products of -1 and 1, whole numbers below 2^24, exact in float32. Raises ValueError for other shapes and types.
    """
    if hashes.dtype != torch.bool or hashes.ndim != 2:
        raise ValueError(f"expected bool hashes (n, bits), got {hashes.dtype} {tuple(hashes.shape)}")
    if distance < 0 or chunk < 1:
        raise ValueError(f"expected a distance from 0 and a chunk from 1, got {distance} and {chunk}")
    n, bits = hashes.shape
    least = bits - 2 * distance  # of the product of two rows that are near
    signs = torch.empty(n, bits, device=hashes.device)  # the hashes of the images that are left, as -1 and 1
    kept: list[int] = []  # their indices
    first: list[int | None] = []
    for start in range(0, n, chunk):
        rows = hashes[start : start + chunk].float() * 2 - 1  # (c, bits)
        ranks = torch.arange(len(kept), device=rows.device)
        near = rows @ signs[: len(kept)].T >= least  # (c, kept)
        earliest = torch.where(near, ranks, n).amin(1).tolist() if kept else [n] * len(rows)
        flags = [kept[rank] if rank < n else None for rank in earliest]
        _flag_within(flags, (rows @ rows.T >= least).cpu().numpy(), start)
        first += flags
        new = [i for i, flag in enumerate(flags) if flag is None]
        signs[len(kept) : len(kept) + len(new)] = rows[new]
        kept += [start + i for i in new]
    return first


def find_duplicates(store: Store, distance: int = DISTANCE) -> list[int | None]:
    """:func:`near_duplicates` of a store's images as stored, read shard by shard. Raises InputError where an image is damaged."""
    hashes = [difference_hash(store.read_shard(index).images) for index in range(store.n_shards)]
    return near_duplicates(torch.cat(hashes), distance) if hashes else []


def write_duplicates(store: Store, duplicate_of: list[int | None], distance: int = DISTANCE) -> None:
    """Write duplicates.json into a store: of each image that is flagged the index of the one that it repeats.

    The file names the manifest that it belongs to by its checksum, so that one left from another set is not taken for this one's.
    """
    content = {
        "bits": BITS,
        "distance": distance,
        "duplicate_of": {str(i): first for i, first in enumerate(duplicate_of) if first is not None},
        "manifest_sha256": sha256_of(store.root / "manifest.json"),
    }
    replace_file(store.root / DUPLICATES_FILE, dump_json(content))


def read_duplicates(store: Store, distance: int | None = None) -> list[int | None] | None:
    """What :func:`write_duplicates` wrote for this store; None where there is no such file, or another set's, or one that is damaged.

    distance: also None where another one was used.
    """
    try:
        content: Any = json.loads((store.root / DUPLICATES_FILE).read_bytes())
        if content["manifest_sha256"] != sha256_of(store.root / "manifest.json"):
            return None
        if distance not in (None, content["distance"]):
            return None
        flagged = {int(i): int(first) for i, first in content["duplicate_of"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if any(not 0 <= first < i < len(store) for i, first in flagged.items()):
        return None
    return [flagged.get(i) for i in range(len(store))]


def _flag_within(flags: list[int | None], near: Any, start: int) -> None:
    """Flag rows of a chunk that repeat an earlier row of it. near: (c, c) bool array. start: index of the first row."""
    for i, flag in enumerate(flags):
        if flag is None:
            flags[i] = next((start + int(j) for j in near[i, :i].nonzero()[0] if flags[j] is None), None)


def _overlaps(side: int, parts: int, like: Tensor) -> Tensor:
    """(parts, side): how much of each of ``side`` pixels lies in each of ``parts`` equal parts, in 1/parts of a pixel: whole numbers."""
    pixels = torch.arange(side, dtype=torch.float64, device=like.device) * parts
    bounds = torch.arange(parts, dtype=torch.float64, device=like.device)[:, None] * side
    return (torch.minimum(pixels + parts, bounds + side) - torch.maximum(pixels, bounds)).clamp(min=0)
