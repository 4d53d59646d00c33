"""Puts the catalogue of small detectors where the tests of their graphs import it from."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "detkd_tests_catalogue" not in sys.modules:
    # in importlib mode no test folder is on sys.path
    _spec = importlib.util.spec_from_file_location("detkd_tests_catalogue", Path(__file__).parents[2] / "catalogue.py")
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])
