from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detkd.data.annotations import coco_json
from detkd.errors import InputError
from detkd.inversion.labelled_boxes import LabelledBoxes
from detkd.structures import Target

CLASSES = ["person", "couch", "dog"]
# of 40 x 20 px (width, height); no image is there
CONTENT: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20}, {"id": 9, "width": 10, "height": 30}],
    "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "sofa"}],
    "annotations": [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 30, 4]},
        {"image_id": 7, "category_id": 3, "bbox": [20, 10, 30, 20]},
        {"image_id": 9, "category_id": 3, "bbox": [0, 0, 5, 6]},
    ],
}


def written(folder: Path, content: Any = CONTENT) -> Path:
    path = folder / "labels.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def draw(path: Path, count: int = 2, size: tuple[int, int] = (60, 80), seed: int = 0, **options: Any) -> list[Target]:
    return LabelledBoxes(path, **options)(count, CLASSES, size, torch.Generator().manual_seed(seed))


def many(folder: Path, images: int = 10) -> Path:
    """Image i has i + 1 boxes of class i % 3."""
    entries = [(f"{i}.png", [[10.0 * j, 5, 10 * j + 9, 50] for j in range(i + 1)], [i % 3] * (i + 1)) for i in range(images)]
    return written(folder, coco_json(entries, CLASSES, (100, 100)))


def test_boxes_are_stretched_and_categories_map_by_name(tmp_path: Path) -> None:
    first, second = sorted(draw(written(tmp_path)), key=lambda t: -len(t["boxes"]))
    assert first["boxes"].tolist() == [[2, 6, 62, 18], [40, 30, 80, 60]]  # the second overhangs its image and is clipped
    assert first["labels"].tolist() == [2, 1]
    torch.testing.assert_close(second["boxes"], torch.tensor([[0.0, 0, 40, 12]]))
    assert second["labels"].tolist() == [1]
    assert first["labels"].dtype == torch.int64
    assert first["boxes"].dtype == torch.float32


def test_every_labelled_image_is_drawn_before_one_comes_again(tmp_path: Path) -> None:
    drawn = [len(t["boxes"]) for t in draw(many(tmp_path), 25)]
    assert sorted(drawn[:10]) == list(range(1, 11))
    assert sorted(drawn[10:20]) == list(range(1, 11))
    assert len(set(drawn[20:])) == 5
    assert drawn[:10] != drawn[10:20]


def test_the_generator_decides_alone(tmp_path: Path) -> None:
    path = many(tmp_path)
    layout = LabelledBoxes(path)
    calls = [layout(6, CLASSES, (64, 64), torch.Generator().manual_seed(s)) for s in (1, 2, 1)]
    assert [t["labels"].tolist() for t in calls[0]] == [t["labels"].tolist() for t in calls[2]]
    assert [t["labels"].tolist() for t in calls[0]] != [t["labels"].tolist() for t in calls[1]]
    calls[0][0]["boxes"].zero_()  # what was handed out is the caller's
    assert all(t["boxes"].max() > 0 for t in layout(20, CLASSES, (64, 64), torch.Generator()))


def test_small_boxes_and_images_without_others_are_left_out(tmp_path: Path) -> None:
    # in 10 x 10 px: 7.5 x 2, 5 x 5, and the other image's 5 x 2
    assert all(t["boxes"].tolist() == [[5, 5, 10, 10]] for t in draw(written(tmp_path), 4, (10, 10), min_side=2.1))
    assert {len(t["boxes"]) for t in draw(written(tmp_path), 4, (10, 10), min_side=2)} == {1, 2}
    with pytest.raises(InputError, match=r"labels\.json.*at least 6 px.*10x10 px"):
        draw(written(tmp_path), 1, (10, 10), min_side=6)


def test_a_stage_of_another_size_sees_the_boxes_anew(tmp_path: Path) -> None:
    layout = LabelledBoxes(written(tmp_path))
    small = layout(1, CLASSES, (10, 10), torch.Generator().manual_seed(0))
    large = layout(2, CLASSES, (100, 100), torch.Generator().manual_seed(0))
    assert len(small[0]["boxes"]) == 1
    assert sum(len(t["boxes"]) for t in large) == 3


def test_only_the_classes_that_are_asked_for(tmp_path: Path) -> None:
    targets = draw(many(tmp_path), 12, classes=["sofa", "dog"])
    assert set(torch.cat([t["labels"] for t in targets]).tolist()) == {1, 2}
    assert {len(t["boxes"]) for t in targets} == {2, 3, 5, 6, 8, 9}
    with pytest.raises(InputError, match=r"layout\.classes.*\['cow'\]"):
        draw(many(tmp_path), classes=["cow"])
    with pytest.raises(InputError, match=r"labels\.json.*boxes of the classes \['person'\], found none"):
        draw(written(tmp_path), classes=["person"])


def test_crowds_and_boxes_of_no_extent_are_left_out(tmp_path: Path) -> None:
    content = json.loads(json.dumps(CONTENT))
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][2]["bbox"] = [0, 0, 5, 0]
    with pytest.warns(UserWarning, match="left out 1 boxes"):
        targets = draw(written(tmp_path, content))
    assert [t["labels"].tolist() for t in targets] == [[1], [1]]


def test_unknown_categories(tmp_path: Path) -> None:
    content = json.loads(json.dumps(CONTENT))
    content["categories"][0]["name"] = "yak"
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=r"labels\.json.*'yak'.*on_unknown=drop"):
        draw(path)
    with pytest.warns(UserWarning, match="yak"):
        targets = draw(path, on_unknown="drop")
    assert {n for t in targets for n in t["labels"].tolist()} == {1}
    content["categories"][1]["name"] = "gnu"
    with pytest.raises(InputError, match="none that is among them"):
        draw(written(tmp_path, content), on_unknown="drop")


def test_another_teacher_reads_anew(tmp_path: Path) -> None:
    layout = LabelledBoxes(written(tmp_path))
    layout(1, CLASSES, (60, 80), torch.Generator())
    targets = layout(2, ["dog", "couch"], (60, 80), torch.Generator())
    assert sorted(n for t in targets for n in t["labels"].tolist()) == [0, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not parse"),
        ("[]", "json object"),
        ({"images": []}, "missing are"),
        (CONTENT | {"annotations": []}, "expected boxes of the teacher's classes, found none"),
        ({k: v for k, v in CONTENT.items() if k != "annotations"}, "expected boxes of the teacher's classes, found none"),
        (CONTENT | {"images": [{"id": 7, "width": 40}]}, "height"),
    ],
)
def test_a_damaged_json_is_an_error_that_names_it(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=rf"labels\.json.*{message}"):
        draw(path)


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layout\.annotations.*nothing\.json"):
        LabelledBoxes(tmp_path / "nothing.json")
    with pytest.raises(InputError, match=r"layout\.annotations.*directory"):
        LabelledBoxes(tmp_path)
    path = written(tmp_path)
    with pytest.raises(InputError, match=r"layout\.min_side.*got 0"):
        LabelledBoxes(path, min_side=0)
    with pytest.raises(InputError, match=r"layout\.on_unknown.*'keep'"):
        LabelledBoxes(path, on_unknown="keep")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"layout\.classes.*got \[\]"):
        LabelledBoxes(path, classes=[])


def test_the_labels_of_real_coco_images(shared: Path) -> None:
    path = shared / "data/coco-val164/instances.json"
    if not path.is_file():
        pytest.skip("no data/coco-val164 in the shared folder; set DETKD_SHARED")
    names = [c["name"] for c in json.loads(path.read_text())["categories"]]
    targets = LabelledBoxes(path)(163, names, (160, 160), torch.Generator().manual_seed(0))
    boxes = torch.cat([t["boxes"] for t in targets])
    assert all(len(t["boxes"]) for t in targets)
    assert ((boxes >= 0) & (boxes <= 160)).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 4
    assert len(set(torch.cat([t["labels"] for t in targets]).tolist())) > 60
