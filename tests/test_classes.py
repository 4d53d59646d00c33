"""Class names: darknet's and VOC's spellings mean COCO's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from detkd.classes import SYNONYMS, canonical, label_lookup
from detkd.detectors.files import read_names
from detkd.detectors.torchvision.labels import COCO_CLASSES


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("motorbike", "motorcycle"),
        ("tvmonitor", "tv"),
        (" sofa ", "couch"),
        ("cat", "cat"),
        ("platelets", "platelets"),
        ("", ""),
    ],
)
def test_canonical(given: str, expected: str) -> None:
    assert canonical(given) == expected


def test_synonyms_lead_to_coco_names_and_stay_there() -> None:
    assert set(SYNONYMS.values()) <= set(COCO_CLASSES)
    assert not set(SYNONYMS) & set(COCO_CLASSES)
    assert all(canonical(canonical(name)) == canonical(name) for name in SYNONYMS)


def test_a_name_goes_before_another_spelling_and_the_first_before_the_rest() -> None:
    label = label_lookup(["motorbike", "cat", "motor", "motorcycle", "cat"])
    assert [label(name) for name in ("motor", "motorcycle", "bike", "cat", " cat ", "motorbike")] == [2, 3, None, 1, 1, 0]
    assert label_lookup(["motor", "motorbike"])("motorcycle") == 0  # neither is the name itself


def test_darknets_names_are_cocos(shared: Path) -> None:
    assert read_names(shared / "weights" / "coco.names") == COCO_CLASSES
