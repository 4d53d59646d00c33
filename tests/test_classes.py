"""Class names: darknet's and VOC's spellings mean COCO's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from detkd.classes import SYNONYMS, canonical
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


def test_darknets_names_are_cocos(shared: Path) -> None:
    assert read_names(shared / "weights" / "coco.names") == COCO_CLASSES
