"""The built-in world: the same everywhere, boxes tight, classes balanced, the files what they say."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkd.data.scenes import CLASSES, VARIANTS, ScenesDataset, dataset, draw_scene, write_coco
from detkd.data.scenes.dice import Dice, noise
from detkd.data.scenes.world import WORLDS, Placement, box_of, compose, paint
from detkd.errors import InputError

KINDS = [(variant, label) for variant in VARIANTS for label in range(len(CLASSES[variant]))]


@pytest.fixture(scope="module")
def many() -> dict[str, list]:
    return {variant: [draw_scene(7, i, variant=variant) for i in range(300)] for variant in VARIANTS}


def _same(a, b) -> bool:
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.target["boxes"], b.target["boxes"])
        and torch.equal(a.target["labels"], b.target["labels"])
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_scene_depends_on_its_arguments_alone(variant: str) -> None:
    first = [draw_scene(3, i, variant=variant) for i in range(4)]
    np.random.seed(99)  # noqa: NPY002 - the global generator is what must not matter
    random.seed(99)
    torch.manual_seed(99)
    before = (np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state())  # noqa: NPY002
    again = [draw_scene(3, i, variant=variant) for i in (3, 1, 0, 2)]
    assert all(_same(first[i], scene) for i, scene in zip((3, 1, 0, 2), again))
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_each_argument_matters() -> None:
    base = draw_scene(0, 0)
    others = [draw_scene(1, 0), draw_scene(0, 1), *(draw_scene(0, 0, variant=v) for v in VARIANTS[1:])]
    assert not any(torch.equal(base.image, other.image) for other in others)


FROZEN = {
    "main": ([3, 7, 4, 9, 2], [25.34375, 8.359375, 40.296875, 36.078125], 126.584, 53.426),
    "same_domain": ([4, 4], [21.1875, 40.046875, 50.015625, 70.484375], 155.124, 48.272),
    "out_of_domain": ([3, 1, 5], [0.0, 0.0, 47.28125, 52.1875], 37.527, 61.120),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_world_is_frozen(variant: str) -> None:
    """Numbers written down when the worlds were frozen; tolerances are for other platforms' sines and roots."""
    scene = draw_scene(0, 4, variant=variant)
    labels, box, mean, deviation = FROZEN[variant]
    assert scene.target["labels"].tolist() == labels
    torch.testing.assert_close(scene.target["boxes"][0], torch.tensor(box), atol=0.05, rtol=0)
    pixels = scene.image.double()
    assert pixels.mean().item() == pytest.approx(mean, abs=0.02)
    assert pixels.std().item() == pytest.approx(deviation, abs=0.02)


@pytest.mark.parametrize(("variant", "label"), KINDS, ids=lambda value: str(value))
def test_box_is_the_extent_of_the_shape(variant: str, label: int) -> None:
    """Reference: the same object painted 8 times as large, where pixels are an eighth."""
    world = WORLDS[variant]
    kind = world.kinds[label]
    for half, degrees in ((9.0, 0.0), (16.3, kind.turn), (27.0, -kind.turn / 2)):
        angle = math.radians(degrees)
        small = Placement(label, half, 48.3, 47.6, angle, (kind.flat, 1.0))
        large = Placement(label, half * 8, 48.3 * 8, 47.6 * 8, angle, (kind.flat, 1.0))
        coarse, fine = (paint(Dice(2, label), kind, spot, (0.6, -0.8), lit=world.lit) for spot in (small, large))
        y, x = np.nonzero(fine.shape > 0.5)
        truth = np.array((x.min() + fine.left, y.min() + fine.top, x.max() + 1 + fine.left, y.max() + 1 + fine.top)) / 8
        corner = np.array([coarse.left, coarse.top] * 2)
        # sharp tips, and the least width of a neon tube, are where the two differ
        assert np.abs(np.array(box_of(coarse.shape)) + corner - truth).max() <= 1.2
        y, x = np.nonzero(coarse.shape > 0.2)  # fainter pixels of a tip cannot be seen
        touched = np.array((x.min(), y.min(), x.max() + 1, y.max() + 1))
        assert np.abs(np.array(box_of(coarse.shape)) - touched).max() <= 1.5


def test_boxes_of_a_scene_are_those_of_its_masks() -> None:
    spot = Placement(CLASSES["main"].index("die"), 12.0, 30.0, 80.0, 0.0, (1.0, 1.0))
    cut = Placement(CLASSES["main"].index("coin"), 20.0, 90.0, 20.0, 0.0, (1.0, 1.0))
    _, masks, _ = compose(Dice(0), WORLDS["main"], [cut, spot], 96, 96)
    assert box_of(masks[0]) == pytest.approx((70, 0, 96, 40), abs=0.1)  # what sticks out of the image is cut off
    assert box_of(masks[1]) == pytest.approx((18, 68, 42, 92), abs=0.1)


@pytest.mark.parametrize(("variant", "label"), KINDS, ids=lambda value: str(value))
def test_nothing_is_drawn_outside_the_declared_half_sizes(variant: str, label: int) -> None:
    world = WORLDS[variant]
    kind = world.kinds[label]
    for roll in range(4):
        patch = paint(Dice(roll), kind, Placement(label, 100.0, 0.0, 0.0, 0.0, (1.0, 1.0)), (0.6, -0.8), lit=world.lit)
        x0, y0, x1, y1 = box_of(patch.shape)
        scale = 100.0 / max(kind.half)
        assert max(-(x0 + patch.left), x1 + patch.left) <= kind.half[0] * scale + 1
        assert max(-(y0 + patch.top), y1 + patch.top) <= kind.half[1] * scale + 1
        # nor is the declaration too wide, or placing and sizing go by a wrong size
        assert x1 - x0 >= 1.4 * kind.half[0] * scale
        assert y1 - y0 >= 1.4 * kind.half[1] * scale


def test_box_of_counts_shares_of_pixels() -> None:
    mask = np.zeros((6, 8), dtype=np.float32)
    mask[2:4, 3:6] = 1
    mask[2:4, 2] = 0.25
    mask[4, 3:6] = 0.75
    assert box_of(mask) == (2.75, 2.0, 6.0, 4.75)
    assert box_of(np.zeros((4, 4), dtype=np.float32)) == (0, 0, 0, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_hundred_scenes(variant: str, many: dict[str, list]) -> None:
    scenes = many[variant]
    for scene in scenes:
        boxes, labels = scene.target["boxes"], scene.target["labels"]
        assert scene.image.shape == (3, 96, 96)
        assert scene.image.dtype == torch.uint8
        assert boxes.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert 1 <= len(labels) == len(boxes) <= WORLDS[variant].count[1]
        assert boxes.min() >= 0
        assert boxes.max() <= 96
        size = boxes[:, 2:] - boxes[:, :2]
        assert size.min() >= 6
        assert size.max(dim=1).values.min() >= 0.12 * 96
        assert size.max() <= 0.62 * 96
    labels = torch.cat([scene.target["labels"] for scene in scenes])
    share = torch.bincount(labels, minlength=len(CLASSES[variant])) / len(labels)
    assert len(share) == len(CLASSES[variant])
    assert share.min() > 0.6 / len(share)
    assert share.max() < 1.5 / len(share)
    assert len(labels) / len(scenes) > 2


def test_variants_differ(many: dict[str, list]) -> None:
    names = [set(CLASSES[variant]) for variant in VARIANTS]
    assert 8 <= len(CLASSES["main"]) <= 10
    assert len(set.union(*names)) == sum(map(len, names))
    light = {v: torch.stack([s.image for s in many[v]]).float().mean().item() / 255 for v in VARIANTS}
    assert abs(light["main"] - light["same_domain"]) < 0.12
    assert light["out_of_domain"] < 0.5 * min(light["main"], light["same_domain"])


def test_what_is_hidden_is_left_out() -> None:
    world = WORLDS["main"]
    die = CLASSES["main"].index("die")
    coin = CLASSES["main"].index("coin")
    behind = Placement(coin, 14.0, 48.0, 48.0, 0.0, (1.0, 1.0))
    cover = Placement(die, 20.0, 48.0, 50.0, 0.0, (1.0, 1.0))
    beside = Placement(die, 20.0, 75.0, 50.0, 0.0, (1.0, 1.0))
    assert compose(Dice(0), world, [behind, cover], 96, 96)[2] == [die]
    assert compose(Dice(0), world, [behind, beside], 96, 96)[2] == [coin, die]
    assert compose(Dice(0), world, [cover, behind], 96, 96)[2] == [die, coin]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("image_size", [(64, 160), (130, 70), (33, 32)])
def test_other_image_sizes(variant: str, image_size: tuple[int, int]) -> None:
    for index in range(5):
        scene = draw_scene(0, index, variant=variant, image_size=image_size)
        boxes = scene.target["boxes"]
        assert scene.image.shape == (3, *image_size)
        assert len(boxes) >= 1
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= image_size[1]).all()
        assert (boxes[:, 3] <= image_size[0]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_dataset_is_the_scenes() -> None:
    data = ScenesDataset(3, seed=5, variant="same_domain", image_size=(48, 64))
    assert len(data) == 3
    assert data.classes == CLASSES["same_domain"]
    sample = data[2]
    scene = draw_scene(5, 2, variant="same_domain", image_size=(48, 64))
    assert torch.equal(sample["image"], scene.image)
    assert torch.equal(sample["target"]["boxes"], scene.target["boxes"])
    assert sample["image_id"] == 2
    assert data[-1]["image_id"] == 2
    assert len(list(data)) == 3  # iteration ends at the IndexError
    with pytest.raises(IndexError):
        data[3]


def test_write_coco_round_trip(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "new" / "set", 4, seed=2, image_size=(48, 64))
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    content = json.loads((folder / "instances.json").read_text())
    data = ScenesDataset(4, seed=2, image_size=(48, 64))
    assert [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])] == list(data.classes)
    assert [c["id"] for c in content["categories"]] == list(range(1, len(data.classes) + 1))
    ids = [a["id"] for a in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for image, sample in zip(content["images"], data, strict=True):
        assert (image["id"], image["height"], image["width"]) == (sample["image_id"], 48, 64)
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert np.array_equal(np.asarray(picture), sample["image"].permute(1, 2, 0).numpy())
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in mine)])
        assert torch.equal(boxes, sample["target"]["boxes"])
        assert [a["category_id"] - 1 for a in mine] == sample["target"]["labels"].tolist()
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] and a["iscrowd"] == 0 for a in mine)


def test_write_coco_fills_an_empty_folder_and_refuses_others(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_coco(folder, 1)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=r"set: expected a new or empty folder"):
        write_coco(folder, 2)
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(InputError, match="new or empty folder"):
        write_coco(folder / "instances.json", 1)
    with pytest.raises(InputError, match="a file on the way"):
        write_coco(folder / "instances.json" / "below", 1)


def test_write_coco_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int, index: int, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "draw_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        write_coco(tmp_path / "set", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_scene(0, 0, variant="coco"), "variant to be one of main, same_domain, out_of_domain, got 'coco'"),
        (lambda: draw_scene(-1, 0), "seed >= 0, got -1"),
        (lambda: draw_scene(0, -1), "index >= 0, got -1"),
        (lambda: draw_scene(0, 0, image_size=(96, 16)), r"32 pixels at least, got \(96, 16\)"),
        (lambda: ScenesDataset(0), "length >= 1, got 0"),
        (lambda: ScenesDataset(1, variant="x"), "got 'x'"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_dice_are_fair_and_noise_is_smooth() -> None:
    dice = Dice(0)
    rolls = [dice.integer(1, 6) for _ in range(3000)]
    assert set(rolls) == {1, 2, 3, 4, 5, 6}
    assert abs(np.mean(rolls) - 3.5) < 0.15
    grain = dice.grain(3, 50, 50)
    assert abs(grain.mean()) < 0.05
    assert abs(grain.std() - 1) < 0.03
    assert dice.grid(3, 5).shape == (3, 5)
    field = noise(dice, 64, 64, 4, 4)
    assert field.std() > 0.15
    assert np.abs(np.diff(field, axis=1)).max() < 0.2
