from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from detkd.data.annotations import Record
from detkd.data.identity import images_sha256, set_sha256, truths_sha256


def truth(boxes: list[list[float]], labels: list[int], **flags: list[bool]) -> dict[str, Any]:
    extra = {name: torch.tensor(values, dtype=torch.bool) for name, values in flags.items()}
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)} | extra


def test_the_same_boxes_have_the_same_hash_whatever_the_order_of_classes_and_their_spelling() -> None:
    box = [1.0, 2.0, 3.5, 9.0]
    one = truths_sha256([truth([box], [0])], ("motorbike", "cat"))
    assert one == truths_sha256([truth([box], [1])], ("cat", "motorcycle"))
    assert one == truths_sha256([truth([box], [0], iscrowd=[False], ignore=[False])], ("motorbike", "cat"))
    assert one == truths_sha256([truth([[1.0, 2.00001, 3.5, 9.0]], [0])], ("motorbike",))
    assert one == truths_sha256([truth([box], [0]) | {"area": torch.tensor([17.5])}], ("motorbike",))


def test_other_boxes_names_flags_images_or_orders_have_another() -> None:
    box, other = [1.0, 2.0, 3.5, 9.0], [1.0, 2.0, 3.5, 9.1]
    hashes = [
        truths_sha256(truths, names)
        for truths, names in (
            ([truth([box], [0])], ("a", "b")),
            ([truth([other], [0])], ("a", "b")),
            ([truth([box], [1])], ("a", "b")),
            ([truth([box], [0], iscrowd=[True])], ("a", "b")),
            ([truth([box], [0], ignore=[True])], ("a", "b")),
            ([truth([box], [0]) | {"area": torch.tensor([10.0])}], ("a", "b")),
            ([truth([box], [0]), truth([], [])], ("a", "b")),
            ([truth([], []), truth([box], [0])], ("a", "b")),
            ([], ("a", "b")),
        )
    ]
    assert len(set(hashes)) == len(hashes)


def test_names_that_no_file_can_hold_are_hashed_too() -> None:
    assert len(truths_sha256([truth([[0, 0, 1, 1]], [0])], ("\ud800",))) == 64


def test_a_set_is_known_by_its_manifest_else_by_its_json(tmp_path: Path) -> None:
    assert set_sha256(tmp_path) is None
    assert set_sha256(tmp_path / "nowhere") is None
    for name, given in (("instances.json", None), ("other.json", "other.json"), ("manifest.json", "other.json")):
        (tmp_path / name).write_text(name)
        assert set_sha256(tmp_path, given) == hashlib.sha256(name.encode()).hexdigest()


def test_images_are_known_by_id_name_and_size_in_any_order_and_any_folder(tmp_path: Path) -> None:
    def records(folder: str, sizes: dict[str, int]) -> list[Record]:
        (tmp_path / folder).mkdir()
        for name, size in sizes.items():
            (tmp_path / folder / name).write_bytes(b"0" * size)
        return [Record(number, tmp_path / folder / name) for number, name in enumerate(sizes)]

    first = records("a", {"0.png": 3, "1.png": 4})
    one = images_sha256(first)
    assert one == images_sha256(first[::-1]) == images_sha256(records("b", {"0.png": 3, "1.png": 4}))
    others = [
        images_sha256(records("size", {"0.png": 3, "1.png": 5})),
        images_sha256(records("name", {"0.png": 3, "2.png": 4})),
        images_sha256([Record(7, first[0].path), first[1]]),
        images_sha256(first[:1]),
        images_sha256([first[0], Record(1, tmp_path / "gone" / "1.png")]),
        images_sha256([first[0], Record(1, tmp_path / "gone" / "\udcff.png")]),
    ]
    assert len({one, *others}) == 7
