"""A package imports only from its left, and only runtime/ and the entry points know of hydra."""

from __future__ import annotations

import ast
from pathlib import Path

import detkd

# errors -> structures, ... -> detectors, losses, data -> inversion, distillation, evaluation -> runtime -> entry points (all other modules)
ORDER = [
    {"errors"},
    {"structures", "boxes", "classes", "disk"},
    {"detectors", "losses", "data", "assets"},
    {"inversion", "distillation", "evaluation"},
    {"runtime"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
TOGETHER = {2}  # a loss reads a detector, a detector's test data is drawn: one level
ROOT = Path(detkd.__file__).parent


def imports_of(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[tuple[str, Path]]:
    """(package below detkd, file) of every module; detkd/__init__.py is an entry point."""
    files = sorted(ROOT.rglob("*.py"))
    return [(path.relative_to(ROOT).with_suffix("").parts[0], path) for path in files]


def test_a_package_imports_only_from_its_left() -> None:
    wrong = []
    for own, path in modules():
        for name in imports_of(path):
            if not name.startswith("detkd."):
                continue
            other = name.split(".")[1]
            mine, theirs = RANK.get(own, len(ORDER)), RANK.get(other, len(ORDER))
            if not (other == own or theirs < mine or (theirs == mine and mine in TOGETHER)):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_only_runtime_and_entry_points_know_of_hydra() -> None:
    for own, path in modules():
        if own in RANK and own != "runtime":
            assert not {name.split(".")[0] for name in imports_of(path)} & {"hydra", "omegaconf"}, path


def test_the_check_sees_the_packages() -> None:
    assert {own for own, _ in modules()} >= set(RANK) - {"assets"}
    assert "detkd.boxes.clip_xyxy" in imports_of(ROOT / "inversion" / "layout.py")
