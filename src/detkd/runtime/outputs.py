"""What a complete set gets for the people who use it: near-duplicates flagged, a card, a gallery."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detkd.data.card import dataset_card
from detkd.data.duplicates import DISTANCE, find_duplicates, read_duplicates, write_duplicates
from detkd.data.store import Store, open_store
from detkd.disk import parse_json, replace_file
from detkd.runtime.gallery import write_gallery

CARD_FILE = "README.md"


def write_outputs(root: Path, results: Mapping[str, Any], distance: int = DISTANCE) -> dict[str, Any]:
    """Write duplicates.json, README.md and gallery/ into the folder of a complete store; by one process, at the end.

    Args:
        results: what is known of AP50; the keys are those of :func:`detkd.data.card.dataset_card`, others are passed over.
        distance: within which images are near-duplicates, in bits of 512.

    Returns:
        for results.json: ``duplicates``, the number of images that repeat an earlier one.

    Near-duplicates are looked for only where duplicates.json is not this set's, so calling it again is cheap. Nothing of time, machine
    or folder is in these files. Raises InputError when there is no complete store or an image is damaged.
    """
    store = open_store(root)
    duplicate_of = read_duplicates(store, distance)
    if duplicate_of is None:
        duplicate_of = find_duplicates(store, distance)
        write_duplicates(store, duplicate_of, distance)
    flagged = sum(first is not None for first in duplicate_of)
    replace_file(root / CARD_FILE, dataset_card(store, labels_of(store), results, flagged).encode())
    write_gallery(root, None, results)
    return {"duplicates": flagged}


def labels_of(store: Store) -> list[list[int]]:
    """Of each image the labels of its objects, from instances.json."""
    instances = parse_json((store.root / "instances.json").read_bytes(), store.root / "instances.json")
    labels: list[list[int]] = [[] for _ in instances["images"]]
    for annotation in instances["annotations"]:
        labels[annotation["image_id"] - 1].append(annotation["category_id"] - 1)
    return labels
