"""Our own checkpoint: what it keeps, and what it refuses to open. The round trip of each detector is in tests/test_catalogue.py."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from detkd.detectors.checkpoint import fingerprint, load_checkpoint, read_description, save_checkpoint
from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.errors import InputError
from detkd.structures import DetectorSpec

CLASSES = ("Gänse", "traffic light", "x/y")


def detector(seed: int = 0, width: float = 0.1) -> Any:
    torch.manual_seed(seed)
    return yolov3_tiny(CLASSES, (64, 32), width=width, resize="stretch", box_gain=2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(detector(), tmp_path / "deep" / "a.safetensors", about={"seed": 3, "ap50": 0.5})
    return tmp_path / "deep" / "a.safetensors"


def rewrite(path: Path, **changes: Any) -> None:
    """Change the description of a checkpoint; None takes a key out."""
    description = {k: v for k, v in (read_description(path) | changes).items() if v is not None}
    save_file(load_file(path), path, metadata={"detkd": json.dumps(description)})


def test_keeps_spec_names_gains_and_provenance(path: Path) -> None:
    again: Any = load_checkpoint(path)
    assert again.spec == detector().spec
    assert again.spec.classes == CLASSES
    assert again.box_gain == 2.0
    assert read_description(path)["about"] == {"seed": 3, "ap50": 0.5}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_same_detector_same_file(path: Path, tmp_path: Path) -> None:
    save_checkpoint(detector(), tmp_path / "b.safetensors", about={"ap50": 0.5, "seed": 3})
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_found_by_name_in_the_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKD_CACHE", str(path.parent))
    assert fingerprint(load_checkpoint(path.name)) == fingerprint(detector())


def test_half_precision_is_half_the_size(path: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    save_checkpoint(detector(), half, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * path.stat().st_size
    again = load_checkpoint(half)
    for name, value in again.state_dict().items():
        assert value.dtype == detector().state_dict()[name].dtype
        torch.testing.assert_close(value, detector().state_dict()[name], rtol=1e-3, atol=1e-3)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_checkpoint(detector(1), path, about={"not json": object()})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb()))
    torch.save({"state_dict": Bomb()}, tmp_path / "a.pt")
    for name in ("a.pkl", "a.pt"):
        with pytest.raises(InputError, match=rf"{name}: expected a detkd checkpoint .*pickles .* are not opened"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 200, -4])
def test_a_truncated_file(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a.safetensors: expected a detkd checkpoint .* damaged file"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "metadata",
    [None, {"other": "x"}, {"detkd": "{"}, {"detkd": "[]"}, {"detkd": "{}"}, {"detkd": '{"format": "x"}'}, {"detkd": "3"}],
)
def test_safetensors_of_others(tmp_path: Path, metadata: Any) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=r"x.safetensors: expected a checkpoint written by detkd"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no.safetensors: expected a file, found none"):
        load_checkpoint(tmp_path / "no.safetensors")
    with pytest.raises(InputError, match="found no such file"):
        read_description(tmp_path / "no.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "expected checkpoint version 1, found 2"),
        ({"architecture": "os.system"}, r"expected an architecture of \[.*'DarknetDetector'.*found 'os.system'"),
        ({"architecture": "TinyDetector"}, r"passed as load_checkpoint\(path, detector=...\)"),
        ({"architecture": ["SSD"]}, r"found \['SSD'\]"),
        ({"arguments": [1, 2]}, "expected the arguments of DarknetDetector as an object, found list"),
        ({"arguments": {}}, "DarknetDetector cannot be built"),
        ({"arguments": {"cfg": 3, "classes": ["a"]}}, "DarknetDetector cannot be built"),
        ({"arguments": {"cfg": "[net]", "classes": 4}}, "DarknetDetector cannot be built"),
        ({"arguments": {"cfg": "[net]", "classes": ["a"], "shell": "ls"}}, "DarknetDetector cannot be built.*shell"),
        ({"architecture": "FCOS", "arguments": {"classes": ["a"], "width": "wide"}}, "FCOS cannot be built"),
        ({"architecture": "SSD", "arguments": {"classes": ["a"], "image_size": 7}}, "SSD cannot be built"),
        ({"arguments": None}, "found NoneType"),
    ],
)
def test_a_description_that_cannot_be_followed(path: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(path, **changes)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)


def test_weights_of_another_width_leave_the_detector_given_unchanged(path: Path) -> None:
    other = detector(1, width=0.2)
    before = fingerprint(other)
    with pytest.raises(
        InputError, match=r"a.safetensors: expected the weights of a DarknetDetector .* expected \(.*, found \("
    ):
        load_checkpoint(path, other)
    assert fingerprint(other) == before


def test_a_missing_and_an_unknown_weight(path: Path) -> None:
    metadata, state = {"detkd": json.dumps(read_description(path))}, load_file(path)
    name = next(iter(state))
    tensor = state.pop(name)
    save_file(state, path, metadata=metadata)
    with pytest.raises(InputError, match=f"1 differ, the first is {name}: expected .*found nothing"):
        load_checkpoint(path)
    save_file(state | {name: tensor, "zzz": tensor.clone()}, path, metadata=metadata)
    with pytest.raises(InputError, match="1 differ, the first is zzz: expected nothing"):
        load_checkpoint(path)


def test_fingerprint_looks_at_buffers_and_names() -> None:
    one, other = detector(), detector()
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(detector(1))
    other.norms()[0].mean[0] += 1
    assert fingerprint(one) != fingerprint(other)


def test_fingerprint_and_file_do_not_depend_on_the_memory_format(tmp_path: Path) -> None:
    """A depthwise convolution's weights (C, 1, 3, 3) count as contiguous in both formats, with other strides."""

    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.spec = DetectorSpec(("a",), (8, 8))
            self.convs = nn.ModuleList(
                [nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 1, 3), nn.Conv2d(1, 1, 1)]
            )

        def arguments(self) -> dict[str, object]:
            return {}

    plain, other = Depthwise(), Depthwise().to(memory_format=torch.channels_last)
    assert fingerprint(plain) == fingerprint(other)  # type: ignore[arg-type]
    save_checkpoint(plain, tmp_path / "plain.safetensors")  # type: ignore[arg-type]
    save_checkpoint(other, tmp_path / "other.safetensors")  # type: ignore[arg-type]
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
