"""What all tests share."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

if os.environ.get("OMP_NUM_THREADS") == "1":
    torch.set_num_threads(1)


def _load(name: str) -> ModuleType:
    # pytest's importlib mode puts no test folder on sys.path; dataclasses and workers of loaders find the module by its name
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"detkd_tests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_doubles = _load("doubles")
_load("inversion_runs")


@pytest.fixture(scope="session")
def doubles() -> ModuleType:
    """The module tests/doubles.py."""
    return _doubles


@pytest.fixture
def tiny_detector() -> type[torch.nn.Module]:
    """The class TinyDetector; call it for a detector with random weights."""
    return _doubles.TinyDetector


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and images beside the checkout; the test is skipped where it is missing."""
    folder = Path(os.environ.get("DETKD_SHARED", "../shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} of real weights and images; set DETKD_SHARED")
    return folder.resolve()
