"""The dataset card: the facts, nothing of the machine, and names that stay names."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from detkd.data.card import TOP_CLASSES, dataset_card
from detkd.data.store import Store

RECIPE = {
    "loss": {"tv": {"_target_": "detkd.losses.tv.TotalVariation", "weight": 2.0}, "pixel_l2": None},
    "stages": [{"resolution": [16, 24], "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.03}}],
    "layout": {
        "_target_": "detkd.x.FromLabels",
        "path": "/elsewhere/labels.json",
        "more": ["~/x/y.json", "C:\\Users\\z\\w.json"],
    },
    "n_images": 3,
    "warm_start": None,
    "teacher": {"architecture": "DarknetDetector"},
}


def store(
    records: list[dict[str, Any]], classes: tuple[str, ...] = ("cat", "dog"), recipe: Any = RECIPE, root: str = "/a"
) -> Store:
    return Store(Path(root), classes, (16, 24), "t" * 64, 5, recipe, records, 1)


def rows(card: str) -> dict[str, list[str]]:
    """Of all tables: the cells after the first, by the first."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in card.splitlines() if line.startswith("|")
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_the_facts() -> None:
    records = [{"teacher_score": s, "accepted": s > 0.5, "objects_start": 1, "loss": 2.0} for s in (0.25, 0.75, 1.0)]
    scores = {
        "teacher_ap50": 0.9,
        "verifier_ap50": 0.5,
        "verifier_by_size": {"small": 0.125, "medium": None},
        "verifier_by_class": {"dog": 0.375},
        "seconds": 3,
    }
    card = dataset_card(store(records), [[1, 1], [0, 1], []], scores, 2)
    found = rows(card)
    assert found["images"] == ["3"]
    assert found["size"] == ["24 x 16 pixels, PNG"]
    assert found["objects"] == ["4"]
    assert found["objects an image"][0].startswith("1.33 (1.00 asked for")
    assert found["images without an object"] == ["1"]
    assert found["near-duplicates (duplicates.json)"] == ["2 (66.7%)"]
    assert found["dog"] == ["3", "2", "0.375"]
    assert found["cat"] == ["1", "1", "-"]
    assert (found["teacher AP50"], found["verifier AP50"], found["verifier AP50, small boxes"]) == (
        ["0.900"],
        ["0.500"],
        ["0.125"],
    )
    assert "verifier AP50, medium boxes" not in found
    assert found["mean teacher score"] == ["0.667"]
    assert found["accepted"] == ["2 of 3 (66.7%)"]
    assert found["loss.tv"] == ["`TotalVariation(weight=2)`"]
    assert found["stages 1"] == ["`optimizer=Adam(lr=0.03), resolution=[16, 24]`"]
    assert found["warm_start"] == ["`none`"]
    assert "loss.pixel_l2" not in found
    assert "seconds" not in card
    front = front_matter(card)
    assert front["size_categories"] == ["n<1K"]
    assert front["task_categories"] == ["object-detection"]
    assert front["license"] == "other"


def test_it_warns_of_licence_and_leaks_and_says_how_to_load() -> None:
    card = dataset_card(store([{}]), [[0]])
    for words in (
        "**Licence.**",
        "may leak what it was trained on",
        'CocoDataset("DIR", image_size=(16, 24)',
        "COCO(",
        "data=DIR/data.yaml",
    ):
        assert words in card
    assert "python -m detkd.distill data.root=DIR" in card


def test_what_is_not_known_is_not_there() -> None:
    card = dataset_card(store([{}, {}]), [[], []])
    assert "Nobody has scored it." in card
    assert "near-duplicates" not in card
    assert "2 of 2 classes have no object." in card
    assert "data.yaml (YOLO)" not in card  # sets of before do not have one


def test_no_folder_of_a_machine_is_in_it() -> None:
    here, there = dataset_card(store([{}]), [[0]]), dataset_card(store([{}], root="/b/c"), [[0]])
    assert here == there
    assert rows(here)["layout"] == ["`FromLabels(more=[y.json, w.json], path=labels.json)`"]
    for folder in ("/home", "elsewhere", "~", "Users"):
        assert folder not in here


def test_names_are_escaped() -> None:
    names = ("<script>alert(1)</script>", "a|b\n# c", "[x](http://y)", "`z`")
    card = dataset_card(store([{}], names, {"ke|y\n": "v|`w`"}), [[0, 1, 2, 3]])
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == len([line for line in table if line.endswith("|")])
    assert rows(card)[r"\<script\>alert(1)\</script\>"] == ["1", "1"]
    assert rows(card)[r"a\|b \# c"] == ["1", "1"]
    assert rows(card)[r"\[x\](http\://y)"] == ["1", "1"]
    assert not [line for line in card.splitlines() if line.startswith("# ") and "inverted" not in line]


def test_long_lists_are_cut() -> None:
    classes = tuple(f"class {i:02}" for i in range(40))
    recipe = {"counts": {str(i): 0.04 for i in range(1, 26)}, "sizes": list(range(50))}
    card = dataset_card(store([{}], classes, recipe), [[*range(30), 3]])
    found = rows(card)
    assert len([name for name in found if name.startswith("class ")]) == TOP_CLASSES
    assert found["class 03"] == ["2", "1"]
    assert "10 more classes have 10 objects. 10 of 40 classes have no object." in card
    assert found["counts"][0].startswith("`1=0.04, 2=0.04, 3=0.04,")
    assert found["counts"][0].endswith("25 in all`")
    assert found["sizes"] == ["`[0, 1, 2, 3, 4, 5, 6, 7, ... 50 in all]`"]


def test_a_tiled_set_says_so() -> None:
    recipe = {"kind": "tiling", "source": {"recipe": RECIPE, "manifest_sha256": None}}
    card = dataset_card(store([{"sources": [1, 2], "objects": 2, "dropped": 0}], recipe=recipe), [[0, 0]])
    assert "# 1 tiled images of 2 classes" in card
    assert "Each image is laid out" in card
    assert rows(card)["source.recipe.loss.tv"] == ["`TotalVariation(weight=2)`"]


@pytest.mark.parametrize(("images", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (20_000, "10K<n<100K")])
def test_sizes(images: int, size: str) -> None:
    assert front_matter(dataset_card(store([{}] * images), [[]] * images))["size_categories"] == [size]


def test_labels_must_be_those_of_the_images() -> None:
    with pytest.raises(ValueError, match="labels of 2 images, got 1"):
        dataset_card(store([{}, {}]), [[0]])
