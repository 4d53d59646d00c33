"""Training augmentations: values, and boxes that follow the pixels."""

import colorsys

import pytest
import torch
from torch import Tensor

from detkd.data.augment import Compose, HorizontalFlip, HsvJitter, Mosaic, MultiScale, Tile, hsv_to_rgb, rgb_to_hsv
from detkd.errors import InputError
from detkd.structures import Target

SIZE = (64, 96)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(seed: int, n: int) -> tuple[Tensor, list[Target]]:
    """A dark image an index, with one bright rectangle in a channel of its own label."""
    generator = seeded(seed)
    images, targets = torch.zeros(n, 3, *SIZE), []
    for i in range(n):
        x, y = (int(torch.randint(2, 50, (), generator=generator)), int(torch.randint(2, 30, (), generator=generator)))
        w, h = (int(torch.randint(16, 40, (), generator=generator)), int(torch.randint(16, 30, (), generator=generator)))
        images[i, i % 3, y : y + h, x : x + w] = 1
        targets.append(Target(boxes=torch.tensor([[x, y, x + w, y + h]]).float(), labels=torch.tensor([i % 3])))
    return images, targets


def seen(image: Tensor, label: int) -> Tensor:
    """The box around the bright pixels of a channel."""
    rows, columns = (image[label] > 0.5).nonzero().unbind(1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


EMPTY = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
ALL = [HorizontalFlip(0.5), HsvJitter(), Mosaic(), Tile(), MultiScale(64, 160)]


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_follows_the_generator_alone_and_leaves_its_input(augmentation: Compose) -> None:
    images, targets = scene(0, 4)
    images = (images * 0.7 + 0.1).clamp(0, 1)
    before, boxes = images.clone(), [t["boxes"].clone() for t in targets]
    torch.manual_seed(1)
    first, first_targets = augmentation(images, targets, seeded(3))
    torch.manual_seed(2)
    second, second_targets = augmentation(images, targets, seeded(3))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first_targets is not None
    assert second_targets is not None
    for a, b in zip(first_targets, second_targets):
        assert torch.equal(a["boxes"], b["boxes"])
        assert torch.equal(a["labels"], b["labels"])
    assert torch.equal(images, before)
    assert all(torch.equal(t["boxes"], b) for t, b in zip(targets, boxes))
    assert first.min() >= 0
    assert first.max() <= 1
    others = [augmentation(images, targets, seeded(s))[0] for s in range(4, 12)]
    assert any(o.shape != first.shape or not torch.equal(o, first) for o in others)


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_no_targets_and_empty_targets(augmentation: Compose) -> None:
    images, _ = scene(0, 3)
    without, none = augmentation(images, None, seeded(1))
    with_empty, empty = augmentation(images, [EMPTY] * 3, seeded(1))
    assert none is None
    assert torch.equal(without, with_empty)
    assert empty is not None
    assert [t["boxes"].shape for t in empty] == [(0, 4)] * 3
    assert [t["labels"].dtype for t in empty] == [torch.int64] * 3


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_batch_of_one(augmentation: Compose) -> None:
    images, targets = scene(5, 1)
    out, followed = augmentation(images, targets, seeded(5))
    assert out.shape[:2] == (1, 3)
    assert followed is not None
    assert len(followed) == 1


def test_flip_mirrors_pixels_and_boxes() -> None:
    images, targets = scene(1, 6)
    flipped, followed = HorizontalFlip(1.0)(images, targets, seeded())
    assert torch.equal(flipped, images.flip(-1))
    assert followed is not None
    for i, target in enumerate(followed):
        assert torch.equal(target["boxes"][0], seen(flipped[i], i % 3))
    same, kept = HorizontalFlip(0.0)(images, targets, seeded())
    assert torch.equal(same, images)
    assert kept == targets


def test_flip_draws_per_image() -> None:
    images, targets = scene(1, 64)
    flipped, _ = HorizontalFlip(0.5)(images, targets, seeded(0))
    changed = (flipped != images).flatten(1).any(1)
    assert 16 < int(changed.sum()) < 48


def test_hsv_equals_the_standard_library() -> None:
    rgb = torch.rand(1, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    rgb[0, :, 0, :6] = torch.tensor([[1.0, 0, 0, 0, 1, 0.5], [0, 1, 0, 0, 1, 0.5], [0, 0, 1, 0, 1, 0.5]])
    pixels = rgb[0].flatten(1).T.tolist()
    expected = torch.tensor([colorsys.rgb_to_hsv(*p) for p in pixels], dtype=torch.float64).T.reshape(1, 3, 8, 8)
    torch.testing.assert_close(torch.stack(rgb_to_hsv(rgb), 1), expected)
    back = torch.tensor([colorsys.hsv_to_rgb(*p) for p in expected[0].flatten(1).T.tolist()], dtype=torch.float64)
    torch.testing.assert_close(hsv_to_rgb(*expected.unbind(1)), back.T.reshape(1, 3, 8, 8))
    torch.testing.assert_close(hsv_to_rgb(*rgb_to_hsv(rgb)), rgb)


def test_hsv_jitter_stays_within_its_gains() -> None:
    images = torch.tensor([0.45, 0.6, 0.3])[None, :, None, None].repeat(200, 1, 2, 2)
    jittered, _ = HsvJitter(0.1, 0.2, 0.3)(images, None, seeded())
    before, after = (torch.stack(rgb_to_hsv(x), 1) for x in (images, jittered))
    assert torch.allclose(after, after[:, :, :1, :1].expand_as(after), atol=1e-5)
    assert 0.08 < (after[:, 0] - before[:, 0]).abs().max() <= 0.1 + 1e-4
    assert 0.15 < (after[:, 1] / before[:, 1] - 1).abs().max() <= 0.2 + 1e-4
    assert 0.25 < (after[:, 2] / before[:, 2] - 1).abs().max() <= 0.3 + 1e-4
    unchanged, _ = HsvJitter(0, 0, 0)(images, None, seeded())
    torch.testing.assert_close(unchanged, images)


def test_mosaic_shows_each_image_where_its_box_is() -> None:
    # images of one grey each, framed by a box whose label tells the grey
    images = (torch.arange(6) / 8)[:, None, None, None].expand(6, 3, *SIZE)
    targets = [Target(boxes=torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]]), labels=torch.tensor([i])) for i in range(6)]
    out, followed = Mosaic(p=0.5)(images, targets, seeded())
    assert followed is not None
    counts = [len(target["labels"]) for target in followed]
    assert 1 in counts
    assert max(counts) > 1
    for image, target in zip(out, followed):
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist()):
            middle = image[:, int((y1 + y2) / 2), int((x1 + x2) / 2)]
            torch.testing.assert_close(middle, torch.full((3,), label / 8))


def test_mosaic_boxes_frame_what_is_seen() -> None:
    # one source, so that each of the four quadrants shows the same rectangle
    images, targets = scene(2, 1)
    (x1, y1, x2, y2) = targets[0]["boxes"][0].tolist()
    found = 0
    for seed in range(30):
        out, followed = Mosaic(min_visible=0.0, min_side=0.0)(images, targets, seeded(seed))
        assert followed is not None
        boxes = followed[0]["boxes"]
        canvas = torch.zeros(SIZE)
        for bx1, by1, bx2, by2 in boxes.tolist():
            canvas[max(0, round(by1)) : round(by2), max(0, round(bx1)) : round(bx2)] = 1
        bright = (out[0, 0] > 0.5).float()
        union = ((canvas + bright) > 0).sum()
        # edges fall between pixels: a rim of one pixel around each box may differ
        rim = sum(2 * (b[2] - b[0] + b[3] - b[1]) for b in boxes) + 4
        assert (canvas != bright).sum() <= rim
        found += int(union > 0)
        assert ((boxes[:, 2] - boxes[:, 0]) <= (x2 - x1) + 1e-3).all()
        assert ((boxes[:, 3] - boxes[:, 1]) <= (y2 - y1) + 1e-3).all()
    assert found > 20


def test_mosaic_drops_by_its_rule() -> None:
    images = torch.zeros(1, 3, 64, 64)
    target = Target(boxes=torch.tensor([[0.0, 0.0, 64.0, 64.0]]), labels=torch.tensor([4]))
    counts = []
    for min_visible in (0.0, 0.3, 1.0):
        total = 0
        for seed in range(40):
            _, followed = Mosaic(min_visible=min_visible)(images, [target], seeded(seed))
            assert followed is not None
            boxes = followed[0]["boxes"]
            assert (boxes >= 0).all()
            assert (boxes <= 64).all()
            assert ((boxes[:, 2:] - boxes[:, :2]) >= 2).all()
            assert (followed[0]["labels"] == 4).all()
            total += len(boxes)
        counts.append(total)
    # a window between one and two sides shows most quadrants in part, and only a few whole
    assert counts[0] > counts[1] > counts[2]
    assert counts[0] > 100


def test_mosaic_of_probability_zero_does_nothing() -> None:
    images, targets = scene(2, 4)
    out, followed = Mosaic(p=0.0)(images, targets, seeded())
    assert torch.equal(out, images)
    assert followed == targets


def test_tile_boxes_frame_what_is_seen() -> None:
    images, targets = scene(2, 3)  # image i shows its rectangle in channel i
    sizes = set()
    for seed in range(20):
        out, followed = Tile([2, 6], min_side=0)(images, targets, seeded(seed))
        assert out.shape == images.shape
        assert followed is not None
        for image, target in zip(out, followed):
            sizes.add(len(target["boxes"]))
            framed = torch.zeros_like(image)
            for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist()):
                # the part of each pixel that the box covers
                rows = (torch.arange(1, SIZE[0] + 1).clamp(max=y2) - torch.arange(SIZE[0]).clamp(min=y1)).clamp(min=0)
                columns = (torch.arange(1, SIZE[1] + 1).clamp(max=x2) - torch.arange(SIZE[1]).clamp(min=x1)).clamp(min=0)
                framed[label] += rows[:, None] * columns
            # edges are soft; a frame one pixel off in x and y would differ by the whole rim
            rim = (target["boxes"][:, 2:] - target["boxes"][:, :2]).sum() * 2
            assert (image - framed).abs().sum() <= 0.4 * rim
    assert sizes == {2, 3, 4, 5, 6}


def test_tile_has_the_image_itself_and_others_of_the_batch() -> None:
    images = torch.arange(1, 9)[:, None, None, None].expand(8, 3, *SIZE) / 8
    targets = [Target(boxes=torch.tensor([[0.0, 0.0, 96.0, 64.0]]), labels=torch.tensor([i])) for i in range(8)]
    others = set()
    for seed in range(5):
        out, followed = Tile({4: 1})(images, targets, seeded(seed))
        assert followed is not None
        for i, (image, target) in enumerate(zip(out, followed)):
            labels = target["labels"].tolist()
            assert labels[0] == i
            assert len(labels) == 4
            others |= set(labels[1:])
            for (x1, y1, x2, y2), label in zip(target["boxes"].int().tolist(), labels):
                torch.testing.assert_close(image[:, y1:y2, x1:x2], images[label, :, y1:y2, x1:x2])
    assert others == set(range(8))


def test_tile_of_probability_zero_or_one_image_does_nothing() -> None:
    images, targets = scene(2, 4)
    targets[0] = Target(boxes=torch.tensor([[3.0, 3.0, 4.0, 9.0]]), labels=torch.tensor([0]))  # thinner than min_side
    for augmentation in (Tile(p=0.0), Tile([1, 1])):
        out, followed = augmentation(images, targets, seeded())
        assert torch.equal(out, images)
        assert followed == targets


def test_tile_draws_per_image() -> None:
    images, targets = scene(2, 400)
    _, followed = Tile("voc", p=0.5, most=3, min_side=0)(images, targets, seeded())
    assert followed is not None
    counts = torch.bincount(torch.tensor([len(t["boxes"]) for t in followed])) / 400
    assert counts.tolist() == pytest.approx([0, 0.5 + 0.5 * 0.3, 0.5 * 0.34, 0.5 * 0.36], abs=0.08)


def test_tile_refuses_what_cannot_be() -> None:
    for make, message in (
        (lambda: Tile(p=1.5), "Tile.p: expected a number from 0 to 1"),
        (lambda: Tile(most=26), "Tile.most: expected 1 to 25 images, got 26"),
        (lambda: Tile(most=0), "Tile.most: expected 1 to 25 images, got 0"),
        (lambda: Tile([1, 10]), "Tile.counts: expected counts of at most 9, got 10"),
        (lambda: Tile("imagenet"), "Tile.counts: expected one of uniform, random, coco, voc"),
        (lambda: Tile(min_side=-1), "Tile.min_side: expected pixels from 0, got -1"),
        (lambda: Tile(min_side=float("nan")), "Tile.min_side"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_multi_scale_sizes_and_boxes() -> None:
    images, targets = scene(3, 2)
    sizes = set()
    for seed in range(30):
        out, followed = MultiScale(64, 192, 32)(images, targets, seeded(seed))
        height, width = out.shape[-2:]
        sizes.add((height, width))
        assert followed is not None
        for i, target in enumerate(followed):
            expected = targets[i]["boxes"][0] * torch.tensor([width / 96, height / 64] * 2)
            torch.testing.assert_close(target["boxes"][0], expected)
            assert (seen(out[i], i % 3) - expected).abs().max() <= 1.5
    # height is 2/3 of the width, to the nearest multiple
    assert sizes == {(32, 64), (64, 96), (96, 128), (96, 160), (128, 192)}


def test_multi_scale_needs_a_multiple_in_range() -> None:
    assert MultiScale(96, 96)(torch.zeros(1, 3, 64, 64), None, seeded())[0].shape == (1, 3, 96, 96)
    with pytest.raises(InputError, match="multiple of stride 32"):
        MultiScale(65, 95)


def test_bad_probabilities() -> None:
    for make in (lambda: HorizontalFlip(1.5), lambda: Mosaic(p=-0.1), lambda: HsvJitter(value=2)):
        with pytest.raises(InputError, match="from 0 to 1"):
            make()


def test_compose_chains_and_keeps_the_gradient() -> None:
    images, targets = scene(4, 4)
    images = (0.2 + 0.6 * images).requires_grad_()
    chain = Compose([HorizontalFlip(), HsvJitter(), Mosaic(), Tile([1, 4]), MultiScale(64, 64)])
    out, followed = chain(images, targets, seeded())
    out.mean().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert followed is not None
    assert len(followed) == 4
