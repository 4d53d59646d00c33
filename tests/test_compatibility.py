"""docs/compatibility.md says what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from detkd.detectors.checkpoint import ARCHITECTURES
from detkd.runtime.run import config_dir

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "make_compatibility.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_compatibility", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_trying_gives(script: ModuleType) -> None:
    assert script.TARGET.read_text(encoding="utf-8") == script.document(), "out of date: python docs/make_compatibility.py"


def test_no_architecture_and_no_term_is_forgotten(script: ModuleType) -> None:
    assert {*script.SETTINGS, *script.BUILDERS, *script.OPTIONAL} == set(ARCHITECTURES)
    files = {path.stem for path in (config_dir() / "loss").glob("*.yaml") if "_target_" in path.read_text()}
    assert set(script.terms()) == files
    assert set(script.INVERSION) <= files


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "loss 'x': expected a teacher with a head (a, b), found a SSD without a, b. Detectors that have it: FCOS",
            "expected a teacher with a head. Detectors that have it: FCOS",
        ),
        (
            "loss 'x': expected the same strides, found p3 (8 px) and p4 (16 px); loss.x.levels=[p3] takes both",
            "expected the same strides; loss.<term>.levels=[p3] takes both",
        ),
        ("loss.x.levels: expected maps ['p4'], got ['c5']", "expected maps ['p4'], got ['c5']"),
        ("loss 'x': expected a, found b", "expected a"),
    ],
)
def test_reasons_leave_out_what_was_found(script: ModuleType, message: str, expected: str) -> None:
    assert script.reason(message) == expected
