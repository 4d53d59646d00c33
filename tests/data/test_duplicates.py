"""Near-duplicates: what the hash sees and does not see, and which image is flagged."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkd.data.duplicates import (
    BITS,
    DISTANCE,
    difference_hash,
    find_duplicates,
    near_duplicates,
    read_duplicates,
    write_duplicates,
)
from detkd.data.scenes import ScenesDataset
from detkd.data.store import Store, StoreWriter
from detkd.structures import Target


@pytest.fixture(scope="module")
def scenes() -> Tensor:
    dataset = ScenesDataset(12, seed=1, image_size=(96, 96))
    return torch.stack([dataset[i]["image"] for i in range(12)])


def apart(a: Tensor, b: Tensor) -> list[int]:
    return (difference_hash(a) != difference_hash(b)).sum(1).tolist()


def reference(image: Tensor) -> list[bool]:
    """The definition, area by area, in whole numbers."""
    height, width = image.shape[1:]
    grey = (299 * image[0].long() + 587 * image[1].long() + 114 * image[2].long()).tolist()

    def area(row: int, rows: int, column: int, columns: int) -> int:
        total = 0
        for y in range(height):
            high = min((y + 1) * rows, (row + 1) * height) - max(y * rows, row * height)
            for x in range(width):
                wide = min((x + 1) * columns, (column + 1) * width) - max(x * columns, column * width)
                total += max(0, high) * max(0, wide) * grey[y][x]
        return total

    right = [area(r, 16, c, 17) < area(r, 16, c + 1, 17) for r in range(16) for c in range(16)]
    below = [area(r, 17, c, 16) < area(r + 1, 17, c, 16) for r in range(16) for c in range(16)]
    return right + below


@pytest.mark.parametrize("size", [(16, 17), (20, 11), (5, 3)])
def test_hash_is_what_its_definition_says(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert difference_hash(image[None])[0].tolist() == reference(image)


def test_hash_of_a_ramp() -> None:
    ramp = torch.arange(0, 170, dtype=torch.uint8).expand(1, 3, 160, 170)
    bits = difference_hash(ramp)[0]
    assert bits[:256].all()
    assert not bits[256:].any()


def test_hash_does_not_depend_on_the_batch(scenes: Tensor) -> None:
    assert difference_hash(scenes).shape == (12, BITS)
    assert torch.equal(difference_hash(scenes), torch.cat([difference_hash(image[None]) for image in scenes]))
    assert difference_hash(scenes[:0]).shape == (0, BITS)


def test_brightness_noise_and_size_are_not_seen_a_mirror_is(scenes: Tensor) -> None:
    darker = (scenes.float() * 0.7).round().to(torch.uint8)
    shifted = (scenes.clamp(20, 235).int() + 20).to(torch.uint8)
    noise = torch.randint(-8, 9, scenes.shape, generator=torch.Generator().manual_seed(0))
    noisy = (scenes.int() + noise).clamp(0, 255).to(torch.uint8)
    half = torch.nn.functional.avg_pool2d(scenes.double(), 2).round().to(torch.uint8)
    for changed in (darker, noisy, half):
        assert max(apart(scenes, changed)) <= DISTANCE
    assert max(apart(scenes.clamp(20, 235), shifted)) == 0
    assert min(apart(scenes, scenes.flip(-1))) > DISTANCE
    assert min(apart(scenes, scenes.roll(1, 0))) > DISTANCE


def test_images_of_one_colour_are_alike() -> None:
    colours = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 20, 20)
    assert not difference_hash(colours).any()
    assert near_duplicates(difference_hash(colours)) == [None, 0, 0]


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8).byte()]
)
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8 images"):
        difference_hash(images)


def line(*places: int) -> Tensor:
    """Hashes of 32 bits as far from each other as these numbers."""
    return torch.arange(32)[None] < torch.tensor(places)[:, None]


def test_an_image_is_flagged_with_the_earliest_that_is_left() -> None:
    assert near_duplicates(line(0, 9, 1, 8, 0), 1) == [None, None, 0, 1, 0]
    assert near_duplicates(line(0, 3), 3) == [None, 0]  # at the distance
    assert near_duplicates(line(0, 4), 3) == [None, None]  # beyond it


def test_a_chain_of_likenesses_keeps_its_second_end() -> None:
    assert near_duplicates(line(0, 3, 6), 3) == [None, 0, None]


def brute_force(hashes: Tensor, distance: int) -> list[int | None]:
    flags: list[int | None] = []
    for i in range(len(hashes)):
        like = (j for j in range(i) if flags[j] is None and int((hashes[i] != hashes[j]).sum()) <= distance)
        flags.append(next(like, None))
    return flags


@settings(deadline=None)
@given(st.lists(st.integers(0, 32), max_size=30), st.integers(0, 10), st.integers(1, 40))
def test_same_as_brute_force_for_any_chunk(places: list[int], distance: int, chunk: int) -> None:
    hashes = line(*places) if places else torch.zeros(0, 32, dtype=torch.bool)
    assert near_duplicates(hashes, distance, chunk) == brute_force(hashes, distance)


def test_same_for_any_chunk_of_many() -> None:
    generator = torch.Generator().manual_seed(0)
    hashes = torch.rand(300, BITS, generator=generator) < 0.5
    hashes[200:] = hashes[torch.randint(0, 200, (100,), generator=generator)] ^ (
        torch.rand(100, BITS, generator=generator) < 0.1
    )
    found = near_duplicates(hashes)
    assert found == near_duplicates(hashes, chunk=7) == near_duplicates(hashes, chunk=300)
    assert sum(first is not None for first in found) > 80


def test_bad_arguments_of_the_search() -> None:
    with pytest.raises(ValueError, match="expected bool hashes"):
        near_duplicates(torch.zeros(2, BITS))
    with pytest.raises(ValueError, match="distance from 0"):
        near_duplicates(line(1), -1)


def write_store(root: Path, images: Tensor, seed: int = 0) -> Store:
    writer = StoreWriter(root, {}, ("a",), (96, 96), teacher_sha256="t", seed=seed)
    for index, part in enumerate(images.split(5)):
        writer.write_shard(
            index, part, [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)) for _ in part]
        )
    return writer.finish(-(-len(images) // 5))


def test_a_store_is_looked_through_in_order(scenes: Tensor, tmp_path: Path) -> None:
    store = write_store(tmp_path, torch.cat([scenes[:7], scenes[2:4]]))
    expected = [None] * 7 + [2, 3]
    assert read_duplicates(store) is None
    assert find_duplicates(store) == expected
    write_duplicates(store, find_duplicates(store))
    assert read_duplicates(store) == expected
    assert read_duplicates(store, DISTANCE) == expected
    assert read_duplicates(store, DISTANCE + 1) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 9999, b'{"duplicate_of": 3, "manifest_sha256": ""}'])
def test_a_damaged_list_counts_as_none(content: bytes, scenes: Tensor, tmp_path: Path) -> None:
    store = write_store(tmp_path, scenes[:2])
    (tmp_path / "duplicates.json").write_bytes(content)
    assert read_duplicates(store) is None


def test_the_list_of_another_set_counts_as_none(scenes: Tensor, tmp_path: Path) -> None:
    there = write_store(tmp_path / "there", scenes[:3], seed=1)
    write_duplicates(there, [None, 0, None])
    here = write_store(tmp_path / "here", scenes[:3])
    (tmp_path / "here" / "duplicates.json").write_bytes((tmp_path / "there" / "duplicates.json").read_bytes())
    assert read_duplicates(here) is None
    write_duplicates(here, [None, 2, None])  # of a later image: not what the search writes
    assert read_duplicates(here) is None
