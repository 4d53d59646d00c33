"""From the config of a tiling to its parts: the source, the tilings, and the store that they are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from detkd.data.coco import CocoDataset
from detkd.data.counts import counts_from
from detkd.data.store import Store, StoreWriter, holds_store, open_store
from detkd.data.tile import MOST
from detkd.data.tilings import Tiling, Tilings
from detkd.disk import sha256_of
from detkd.errors import InputError
from detkd.inversion.batches import Finished
from detkd.inversion.writer import StoreBatches
from detkd.runtime.store import BESIDE


def build_tilings(cfg: DictConfig) -> Tilings:
    """The tilings of ``data.root``. Raises InputError naming the key of a value that cannot be."""
    for key in ("n_images", "shard_size", "most"):
        _whole(cfg, key, 1)
    _whole(cfg, "seed")
    if cfg.most > MOST:
        raise InputError(f"most: expected 1 to {MOST} objects an image, got {cfg.most}")
    if isinstance(cfg.min_side, bool) or not isinstance(cfg.min_side, (int, float)):
        raise InputError(f"min_side: expected a number of pixels, got {cfg.min_side!r}")
    for key in ("on_unknown", "invalid_boxes"):
        if cfg.data[key] not in ("error", "drop"):
            raise InputError(f"data.{key}: expected error or drop, got {cfg.data[key]!r}")
    counts = counts_from(_plain(cfg.counts), cfg.most)
    size = _image_size(cfg.image_size)
    if cfg.data.root is None:
        raise InputError("data.root: expected a folder of images with boxes, like data.root=DIR, found none")
    source = CocoDataset(
        cfg.data.root,
        cfg.data.annotations,
        classes=_classes(cfg.data.classes),
        image_size=size,
        resize="stretch",
        on_unknown=cfg.data.on_unknown,
        invalid_boxes=cfg.data.invalid_boxes,
    )
    return Tilings(source, counts, size, cfg.seed, float(cfg.min_side))


def open_writer(cfg: DictConfig, folder: Path, tilings: Tilings) -> StoreWriter:
    """The store in ``folder``: new, or the same run's to go on with. Raises InputError for another run's.

    A tiled store is a set of the source's teacher; where the source is no store, its teacher's hash is empty, which is nobody's.
    """
    store = _source_store(cfg)
    recipe = {
        "kind": "tiling",
        "counts": {str(count): p for count, p in zip(tilings.counts.values, tilings.counts.probabilities)},
        "min_side": tilings.min_side,
        "n_images": cfg.n_images,
        "shard_size": cfg.shard_size,
        "source": {
            "annotations_sha256": tilings.sha256(),
            # two stores may have the same boxes and other images
            "manifest_sha256": None if store is None else sha256_of(store.root / "manifest.json"),
            "recipe": None if store is None else store.recipe,
        },
    }
    return StoreWriter(
        folder,
        recipe,
        tilings.source.classes,
        tilings.image_size,
        teacher_sha256="" if store is None else store.teacher_sha256,
        seed=cfg.seed,
        beside=BESIDE,
    )


def write_shards(writer: StoreWriter, tilings: Tilings, n_images: int, shard_size: int) -> int:
    """Write the shards that are missing, shared with all that work on the folder; how many images this call made.

    Damaged shards are made again. Where a run fails before anything is written, its folder is given up.
    """
    for damaged, why in writer.repair().items():
        print(f"shard {damaged} is damaged and is made again: {why}", flush=True)
    shared = StoreBatches(writer, -(-n_images // shard_size))
    made = 0
    try:
        while (index := shared.claim()) is not None:
            done = [tilings[number] for number in range(index * shard_size, min(n_images, (index + 1) * shard_size))]
            shared.deliver(_finished(index, done))
            made += len(done)
    except Exception:
        shared.close()
        writer.withdraw()
        raise
    finally:
        shared.close()
    return made


def _finished(index: int, done: Sequence[Tiling]) -> Finished:
    records = [{"sources": list(d.sources), "objects": len(d.target["boxes"]), "dropped": d.dropped} for d in done]
    return Finished(index, torch.stack([d.image for d in done]), [d.target for d in done], records, trace={})


def describe(tilings: Tilings, store: Store) -> dict[str, Any]:
    """What results.json says of a finished set."""
    records = store.records
    return {
        "images": len(store),
        "source_images": len(tilings.source.records),
        "source_images_with_boxes": len(tilings.records),
        "objects_before": round(tilings.objects_before, 4),
        "objects_after": round(sum(r["objects"] for r in records) / len(records), 4),
        "images_in_one": round(sum(len(r["sources"]) for r in records) / len(records), 4),
        "dropped_boxes": sum(r["dropped"] for r in records),
        "teacher_sha256": store.teacher_sha256,
    }


def summary(results: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    return (
        f"{results['images']} images of {results['images_in_one']:.2f} each; objects an image: {results['objects_before']:.2f} before, "
        f"{results['objects_after']:.2f} after; {results['dropped_boxes']} boxes became too small"
    )


def _source_store(cfg: DictConfig) -> Store | None:
    """The source as a store, if it is one."""
    is_store = cfg.data.annotations is None and holds_store(cfg.data.root)
    return open_store(cfg.data.root) if is_store else None


def _whole(cfg: DictConfig, key: str, least: int | None = None) -> None:
    value = cfg[key]
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise InputError(f"{key}: expected a whole number{'' if least is None else f' from {least}'}, got {value!r}")


def _image_size(value: Any) -> tuple[int, int]:
    sides = [value, value] if not isinstance(value, ListConfig) else list(value)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise InputError(f"image_size: expected a side or [height, width] in pixels, got {_plain(value)!r}")
    return sides[0], sides[1]


def _classes(value: Any) -> list[str] | None:
    if value is None:
        return None
    names = _plain(value)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"data.classes: expected a list of names, or null for the source's, got {names!r}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"data.classes: expected names that differ, got {twice} more than once")
    return names


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
