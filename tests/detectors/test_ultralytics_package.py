"""The optional package: imported late, offline and without a trace; its absence and its version said in words."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detkd.detectors.checkpoint import load_checkpoint, save_checkpoint
from detkd.detectors.ultralytics import UltralyticsDetector, package
from detkd.errors import InputError

HERE = importlib.util.find_spec("ultralytics") is not None
needs_package = pytest.mark.skipif(not HERE, reason="no package ultralytics; pip install 'detkd[ultralytics]'")
HINT = r"pip install 'detkd\[ultralytics\]' \(ultralytics>=8\.3\.17,<8\.5; its licence is AGPL-3\.0\)"


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let only these distributions be installed."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(importlib.metadata, "version", version)


def python(code: str, folder: Path, **environment: str) -> str:
    """What a fresh Python prints."""
    given = os.environ | {"YOLO_CONFIG_DIR": str(folder), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], env=given, cwd=folder, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_detkd_does_not_import_the_package(tmp_path: Path) -> None:
    code = """
import sys
import detkd.detectors.ultralytics, detkd.detectors.checkpoint, detkd.detectors.pretrained
from detkd.detectors.ultralytics import detector, loss, network, package, pretrained, weights
print([name for name in sys.modules if name.split(".")[0] in ("ultralytics", "cv2")])
"""
    assert python(code, tmp_path).strip() == "[]"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(InputError, match=f"expected the package ultralytics, found none; {HINT}"):
        UltralyticsDetector(("a",))


@pytest.mark.parametrize("version", ["8.2.103", "8.3.16", "8.5.0", "9.0.0", "8.5.0.dev1", "0.0.44"])
def test_another_version_is_named(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ultralytics=version)
    with pytest.raises(InputError, match=rf"expected ultralytics>=8\.3\.17,<8\.5, found {version}; {HINT}"):
        UltralyticsDetector(("a",))


@pytest.mark.parametrize("version", ["8.3.17", "8.3.253", "8.4.0", "8.4.190", "8.4.200.post1"])
@pytest.mark.parametrize("name", ["ultralytics", "ultralytics_opencv_headless"])
def test_versions_in_range_are_imported(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, **{name: version})
    asked = []

    def record(module: str) -> Any:
        asked.append((module, os.environ.get("YOLO_OFFLINE"), os.environ.get("YOLO_AUTOINSTALL")))
        return os

    monkeypatch.setattr(importlib, "import_module", record)
    monkeypatch.delenv("YOLO_OFFLINE", raising=False)
    monkeypatch.setenv("YOLO_AUTOINSTALL", "true")  # a user's own word
    assert package.import_tasks() is os
    assert asked == [("ultralytics.nn.tasks", "true", "true")]
    assert "YOLO_OFFLINE" not in os.environ
    assert os.environ["YOLO_AUTOINSTALL"] == "true"


@pytest.mark.parametrize("error", [ImportError("libGL.so.1: cannot open shared object file"), OSError("no space")])
def test_a_package_that_cannot_be_imported_says_why(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ultralytics="8.4.1")

    def fail(_: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(InputError, match=f"found 8.4.1, which cannot be imported: {error}; {HINT}"):
        package.import_tasks()


def test_what_the_import_replaces_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import PIL.Image
    import torch

    before = torch.load, torch.save, PIL.Image.open

    def patching(_: str) -> Any:
        torch.load = torch.save = PIL.Image.open = os.getcwd  # type: ignore[assignment]
        return os

    pretend(monkeypatch, ultralytics="8.4.1")
    monkeypatch.setattr(importlib, "import_module", patching)
    package.import_tasks()
    assert (torch.load, torch.save, PIL.Image.open) == before


def test_a_checkpoint_of_such_a_student_asks_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_detector: Any
) -> None:
    stand_in = type("UltralyticsDetector", (tiny_detector,), {"arguments": lambda self: {"classes": ["a", "b"]}})
    save_checkpoint(stand_in(("a", "b")), tmp_path / "student.safetensors")
    pretend(monkeypatch)
    with pytest.raises(InputError, match=rf"student\.safetensors: UltralyticsDetector cannot be built .*{HINT}"):
        load_checkpoint(tmp_path / "student.safetensors")


@needs_package
def test_nothing_asks_the_network_or_starts_a_program(tmp_path: Path) -> None:
    code = """
import socket, subprocess, sys
import torch, PIL.Image
asked = []
def refuse(kind):
    def refused(*arguments, **_):
        asked.append((kind, str(arguments)))
        raise OSError("no network here")
    return refused
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse(name))
sys.addaudithook(lambda event, arguments: asked.append((event, str(arguments))) if event in ("socket.connect", "socket.getaddrinfo") else None)
before = torch.load, torch.save, PIL.Image.open
from detkd.detectors.ultralytics import UltralyticsDetector
detector = UltralyticsDetector(("a", "b"), "yolo11n", (64, 64), width=0.125)
detector.decode(detector.eval()(torch.rand(1, 3, 64, 64)))
assert (torch.load, torch.save, PIL.Image.open) == before
print(asked, "ultralytics" in sys.modules)
"""
    assert python(code, tmp_path).splitlines()[-1] == "[] True"
