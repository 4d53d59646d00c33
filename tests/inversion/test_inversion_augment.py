from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.inversion import augment
from detkd.inversion.augment import Augmentation, Brightness, Compose, Contrast, Cutout, Flip, Jitter, Noise, Reordering, Zoom
from detkd.structures import Target

ALL: list[Callable[[], Augmentation]] = [Jitter, Flip, Zoom, Brightness, Contrast, Cutout, Noise]
NAMES = [cls.__name__ for cls in ALL]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 8, height: int = 16, width: int = 24) -> tuple[Tensor, list[Target]]:
    """Random images and in each one box around a bright patch of unique value 2 in channel 0."""
    images = torch.rand(count, 3, height, width, generator=generator(7))
    images[:, 0, 6:10, 8:16] = 2.0
    return images, [one_box(8, 6, 16, 10) for _ in range(count)]


def one_box(*box: float) -> Target:
    return {"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([1])}


def around_patch(image: Tensor) -> list[int]:
    ys, xs = (image[0] == 2.0).nonzero(as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def shifts(before: Tensor, after: Tensor, limit: int) -> list[tuple[int, int]]:
    """The one (x, y) roll of each image that turns ``before`` into ``after``."""
    found = []
    for a, b in zip(before, after, strict=True):
        candidates = [(x, y) for x in range(-limit, limit + 1) for y in range(-limit, limit + 1)]
        (shift,) = [(x, y) for x, y in candidates if torch.equal(a.roll((y, x), (1, 2)), b)]
        found.append(shift)
    return found


def test_jitter_is_a_roll_of_each_image_and_boxes_follow() -> None:
    images, targets = batch(16)
    moved, moved_targets = Jitter(0.125)(images, targets, generator())
    rolls = shifts(images, moved, limit=4)
    assert len(set(rolls)) > 5  # draws of its own for every image
    assert max(abs(x) for x, _ in rolls) <= 3
    assert max(abs(y) for _, y in rolls) <= 2
    for image, target in zip(moved, moved_targets, strict=True):
        assert target["boxes"].tolist() == [around_patch(image)]
        assert target["labels"].tolist() == [1]


def test_jitter_draws_every_shift_alike() -> None:
    images = torch.arange(8.0).expand(3000, 3, 8, 8)
    moved, _ = Jitter(0.25)(images, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 3000, generator())
    counts = torch.bincount(((moved[:, 0, 0, 0] + 2) % 8).long(), minlength=8)  # 0..4: shifts of +2, +1, 0, -1, -2
    assert counts[5:].sum() == 0
    assert counts[:5].min() > 500


def test_jitter_gradient_is_that_of_roll() -> None:
    images, targets = batch(4, 9, 7)
    weights = torch.rand(4, 3, 9, 7, generator=generator(1))
    mine = images.clone().requires_grad_()
    moved, _ = Jitter(0.3)(mine, targets, generator())
    (moved * weights).sum().backward()
    theirs = images.clone().requires_grad_()
    rolled = torch.stack([a.roll((y, x), (1, 2)) for a, (x, y) in zip(theirs, shifts(images, moved.detach(), 3), strict=True)])
    (rolled * weights).sum().backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    assert torch.equal(mine.grad, theirs.grad)
    doubles = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Jitter(0.5)(x, targets[:2], generator())[0], (doubles,))


def test_jitter_clips_a_box_at_the_border_and_one_that_leaves_has_no_area() -> None:
    images = torch.rand(200, 3, 16, 16)
    corner, edge = one_box(0, 0, 2, 2), one_box(10, 4, 16, 12)
    targets: list[Target] = [{k: torch.cat([corner[k], edge[k]]) for k in ("boxes", "labels")} for _ in images]  # type: ignore[literal-required, misc]
    _, moved = Jitter(0.25)(images, targets, generator())
    boxes = torch.stack([t["boxes"] for t in moved])  # (200, 2, 4)
    extent = boxes[..., 2:] - boxes[..., :2]
    gone = (extent == 0).all(-1)
    assert gone[:, 0].any()  # a small box in the corner leaves by some shifts
    assert not gone[:, 0].all()
    assert not gone[:, 1].any()  # a larger one is cut
    assert (extent[:, 1, 0] < 6).any()
    assert (boxes[gone] == 0).all()
    assert (boxes >= 0).all()
    assert (boxes <= 16).all()
    assert all(len(t["labels"]) == 2 for t in moved)


def test_a_box_without_area_stays_so_through_all_augmentations() -> None:
    images, _ = batch()
    targets = [one_box(0, 0, 0, 0) for _ in images]
    _, after = Compose([Jitter(), Flip(1.0), Brightness(), Contrast(), Cutout()])(images, targets, generator())
    assert all(t["boxes"].tolist() == [[0, 0, 0, 0]] for t in after)


def test_flip_mirrors_about_half_of_the_images_with_their_boxes() -> None:
    images, targets = batch(64, 16, 25)
    after, moved = Flip(0.5)(images, targets, generator())
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(after, images, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(after, images, strict=True)])
    assert (flipped ^ kept).all()
    assert 16 < flipped.sum() < 48
    for image, target in zip(after, moved, strict=True):
        assert target["boxes"].tolist() == [around_patch(image)]
    assert torch.equal(Flip(0.0)(images, targets, generator())[0], images)
    assert torch.equal(Flip(1.0)(images, targets, generator())[0], images.flip(-1))


def test_brightness_adds_one_normal_draw_to_each_image() -> None:
    images = torch.rand(2000, 3, 2, 2)
    after, _ = Brightness(0.2)(images, [], generator())
    added = (after - images).flatten(1)
    torch.testing.assert_close(added, added[:, :1].expand_as(added))
    assert added[:, 0].mean().item() == pytest.approx(0, abs=0.02)
    assert added[:, 0].std().item() == pytest.approx(0.2, abs=0.015)


def test_contrast_multiplies_each_image_by_one_normal_draw() -> None:
    images = torch.rand(2000, 3, 2, 2) + 0.5
    after, _ = Contrast(0.1)(images, [], generator())
    factor = (after / images).flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert factor[:, 0].mean().item() == pytest.approx(1, abs=0.01)
    assert factor[:, 0].std().item() == pytest.approx(0.1, abs=0.008)
    assert after.max() > 1.5  # not clamped


def test_cutout_clears_one_rectangle_of_the_area_and_ratio_asked_for() -> None:
    images = torch.rand(600, 3, 64, 64, generator=generator(3)) + 0.1
    after, _ = Cutout(p=0.5, area=(0.05, 0.15), ratio=(0.5, 2.0))(images, [], generator())
    areas, ratios, places = [], [], set()
    for image, before in zip(after, images, strict=True):
        hole = (image == 0).all(0)
        assert torch.equal(image[:, ~hole], before[:, ~hole])
        if not hole.any():
            continue
        ys, xs = hole.nonzero(as_tuple=True)
        tall, wide = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
        assert hole.sum() == tall * wide  # a rectangle
        areas.append(tall * wide / 64**2)
        ratios.append(tall / wide)
        places.add((int(ys.min()), int(xs.min())))
    assert 240 < len(areas) < 360
    assert len(places) > 200
    assert 0.045 < min(areas) < 0.06
    assert 0.14 < max(areas) < 0.155
    assert sum(areas) / len(areas) == pytest.approx(0.1, abs=0.005)
    assert 0.45 < min(ratios) < 0.56
    assert 1.8 < max(ratios) < 2.2
    assert sum(r < 1 for r in ratios) / len(ratios) == pytest.approx(0.5, abs=0.1)  # log-uniform


def test_cutout_reaches_both_corners_and_passes_no_gradient_to_the_hole() -> None:
    images = torch.rand(300, 3, 8, 8, requires_grad=True)
    after, _ = Cutout(p=1.0, area=(0.2, 0.3))(images, [], generator())
    hole = (after == 0).all(1)
    assert hole[:, 0, 0].any()
    assert hole[:, -1, -1].any()
    after.sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, (~hole)[:, None].expand_as(images).float())


def test_a_long_cutout_is_cut_to_the_image() -> None:
    after, _ = Cutout(p=1.0, area=(0.9, 0.9), ratio=(8.0, 8.0))(torch.ones(4, 3, 10, 10), [], generator())
    assert ((after == 0).all(1).sum((1, 2)) == 10 * 3).all()  # 10 tall where 27 were drawn, round(sqrt(90 / 8)) wide


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_the_generator_decides_and_nothing_else(make: Callable[[], Augmentation]) -> None:
    images, targets = batch()
    first, _ = make()(images, targets, generator(5))
    torch.rand(3)
    again, _ = make()(images, targets, generator(5))
    other, _ = make()(images, targets, generator(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_targets_without_boxes(make: Callable[[], Augmentation]) -> None:
    images, _ = batch(3)
    empty: list[Target] = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in images]
    after, moved = make()(images, empty, generator())
    assert after.shape == images.shape
    assert [t["boxes"].shape for t in moved] == [(0, 4)] * 3


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_inputs_are_left_as_they_were(make: Callable[[], Augmentation]) -> None:
    images, targets = batch()
    before = images.clone()
    make()(images, targets, generator())
    assert torch.equal(images, before)
    assert all(t["boxes"].tolist() == [[8, 6, 16, 10]] for t in targets)


def test_compose_applies_in_order_and_none_is_identity() -> None:
    images, targets = batch()
    same, same_targets = Compose([])(images, targets, generator())
    assert same is images
    assert same_targets is targets
    draws = generator()
    step_one = Brightness()(images, targets, draws)[0]
    by_hand = Contrast()(step_one, targets, draws)[0]
    assert torch.equal(Compose([Brightness(), Contrast()])(images, targets, generator())[0], by_hand)


class Shuffle(Reordering):
    """Any order of rows and columns; boxes stay."""

    def draw(self, images: Tensor, targets: Sequence[Target], generator: torch.Generator) -> tuple[Any, Any, Any]:
        rows, columns = (torch.rand(len(images), n, generator=generator).argsort(1) for n in images.shape[2:])
        return rows, columns, targets


def test_compose_takes_rows_and_columns_once_for_several_reorderings(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = torch.rand(5, 3, 6, 9, requires_grad=True), [one_box(1, 2, 5, 4)] * 5
    each = [Shuffle(), Jitter(0.4), Flip(), Shuffle(), Brightness(), Flip()]
    draws, one_by_one, boxes = generator(), images, targets
    for augmentation in each:
        one_by_one, boxes = augmentation(one_by_one, boxes, draws)  # type: ignore[assignment]
    taken: list[Any] = []
    take = augment._take
    monkeypatch.setattr(augment, "_take", lambda *arguments: taken.append(1) or take(*arguments))
    together, moved = Compose(each)(images, targets, generator())
    assert len(taken) == 2
    assert torch.equal(together, one_by_one)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(moved, boxes, strict=True))
    weight = torch.rand(together.shape)
    ours, theirs = (torch.autograd.grad((image * weight).sum(), images)[0] for image in (together, one_by_one))
    torch.testing.assert_close(ours, theirs)


def test_noise_is_drawn_for_every_value() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    noisy, _ = Noise(0.1)(images, [one_box(1, 1, 3, 3)] * 4, generator())
    assert (noisy - images).std().item() == pytest.approx(0.1, rel=0.02)
    assert (noisy - images).mean().abs() < 2e-3
    assert len(noisy.unique()) > 0.9 * noisy.numel()


@pytest.mark.parametrize("scale", [(1.5, 2.0), (0.4, 0.7), (0.7, 1.3)], ids=["enlarged", "reduced", "both"])
def test_zoom_moves_boxes_with_what_is_in_them(scale: tuple[float, float]) -> None:
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    images = torch.stack([xs + 0.5, ys + 0.5, torch.zeros(32, 48)]).expand(16, -1, -1, -1)  # every pixel says where it is
    zoomed, targets = Zoom(scale)(images, [one_box(12, 8, 36, 24)] * 16, generator())
    factors = set()
    for image, target in zip(zoomed, targets, strict=True):
        left, top, right, bottom = target["boxes"][0].tolist()
        inside = image[:, round(top) + 1 : round(bottom) - 1, round(left) + 1 : round(right) - 1]
        assert ((inside[0] > 12) & (inside[0] < 36) & (inside[1] > 8) & (inside[1] < 24)).all()
        if left > 0 and right < 48:
            factors.add(round((right - left) / 24, 4))
            at = image[:, 15, round(left) + 2]
            assert at[0].item() == pytest.approx(12 + (round(left) + 2.5 - left) / (right - left) * 24, abs=0.05)
    assert len(factors) > 3 or scale[0] > 1
    assert all(scale[0] - 1e-3 <= f <= scale[1] + 1e-3 for f in factors)


def test_zoom_out_goes_on_as_the_mirror_image() -> None:
    images = torch.rand(8, 3, 16, 16, generator=generator(1)) + 1
    zoomed, _ = Zoom((0.5, 0.5))(images, [one_box(4, 4, 8, 8)] * 8, generator())
    assert zoomed.min() >= 1  # no border of another value
    assert zoomed.mean().item() == pytest.approx(images.mean().item(), abs=0.02)


def test_zoom_of_one_or_never_changes_nothing() -> None:
    images, targets = batch()
    for zoom in (Zoom((1.0, 1.0)), Zoom((0.5, 2.0), p=0.0)):
        same, same_targets = zoom(images, targets, generator())
        torch.testing.assert_close(same, images, rtol=0, atol=1e-5)
        assert all(torch.allclose(a["boxes"], b["boxes"], atol=1e-4) for a, b in zip(same_targets, targets, strict=True))


def test_zoom_gradient() -> None:
    doubles = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    targets = [one_box(1, 1, 3, 3)] * 2
    assert torch.autograd.gradcheck(lambda x: Zoom()(x, targets, generator())[0], (doubles,))


@pytest.mark.parametrize(("settings", "key"), [({"scale": (0, 1)}, "scale"), ({"scale": (2, 1)}, "scale"), ({"p": 2}, "p")])
def test_zoom_refuses(settings: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=f"zoom.{key}: expected"):
        Zoom(**settings)  # type: ignore[arg-type]
