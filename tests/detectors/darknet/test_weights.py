"""The .weights reader and writer: bit for bit, or nothing at all."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkd.detectors.darknet.cfg import parse_cfg
from detkd.detectors.darknet.network import Darknet
from detkd.detectors.darknet.weights import DEFAULT_HEADER, read_weights, write_weights
from detkd.errors import InputError

CFG = """[net]
[convolutional]
filters=2
size=3
batch_normalize=1
activation=leaky
[convolutional]
filters=6
activation=linear
[yolo]
anchors=4,4
classes=1
num=1
"""
VALUES = 4 * 2 + 2 * 3 * 9 + 6 + 6 * 2


def network(seed: int = 0) -> Darknet:
    torch.manual_seed(seed)
    net = Darknet(parse_cfg(CFG))
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return net


def state(net: Darknet) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items() if tensor.is_floating_point()}


def test_order_of_the_file(tmp_path: Path) -> None:
    path, net = tmp_path / "a.weights", network()
    values = np.arange(VALUES, dtype="<f4")
    path.write_bytes(DEFAULT_HEADER + values.tobytes())
    assert read_weights(net, path) == DEFAULT_HEADER
    first, last = net.conv_blocks()
    norm: Any = first.norm
    found = [norm.bias, norm.weight, norm.running_mean, norm.running_var]
    assert [t.tolist() for t in found] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert torch.equal(first.conv.weight, torch.arange(8.0, 62).view(2, 3, 3, 3))
    assert last.conv.bias is not None
    assert last.conv.bias.tolist() == list(range(62, 68))
    assert torch.equal(last.conv.weight.flatten(), torch.arange(68.0, 80))


@pytest.mark.parametrize(
    "header",
    [DEFAULT_HEADER, struct.pack("<iiiq", 0, 2, 0, 32013312), struct.pack("<iiii", 0, 1, 0, 7)],
    ids=["default", "v0.2", "v0.1 with a 32-bit count"],
)
def test_round_trip_of_random_weights_is_bit_exact(tmp_path: Path, header: bytes) -> None:
    net, other = network(0), network(1)
    write_weights(net, tmp_path / "a.weights", header)
    assert read_weights(other, tmp_path / "a.weights") == header
    assert all(torch.equal(value, state(other)[name]) for name, value in state(net).items())
    write_weights(other, tmp_path / "b.weights", header)
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()
    assert (tmp_path / "a.weights").stat().st_size == len(header) + 4 * VALUES


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_round_trip_of_real_weights_is_bit_exact(tmp_path: Path, shared: Path, name: str) -> None:
    source = shared / "weights" / f"{name}.weights"
    net = Darknet(parse_cfg((shared / "weights" / f"{name}.cfg").read_text()))
    header = read_weights(net, source)
    write_weights(net, tmp_path / "copy.weights", header)
    assert (tmp_path / "copy.weights").read_bytes() == source.read_bytes()


GOOD = DEFAULT_HEADER + bytes(4 * VALUES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"bad.weights: expected a .weights file, found No such file"),
        (b"", "header of at least 16 bytes, found 0 bytes"),
        (GOOD[:15], "found 15 bytes"),
        (GOOD[:-4], rf"bad.weights: expected {VALUES} values for this cfg, found {VALUES - 1} \(truncated"),
        (GOOD[:-3], rf"found {VALUES - 0.75} \(truncated"),
        (GOOD[:20], r"found 0 \(truncated"),
        (GOOD + bytes(4), rf"found {VALUES + 1} \(oversized"),
        (b"PK\x03\x04" + GOOD[4:], "expected a darknet header"),
        (b"\x80\x02}q\x00" + GOOD[5:], "not a .weights file"),
    ],
    ids=["missing", "empty", "header", "truncated", "within a value", "header only", "oversized", "zip", "pickle"],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path, content: bytes | None, message: str) -> None:
    path, net = tmp_path / "bad.weights", network()
    if content is not None:
        path.write_bytes(content)
    before = state(net)
    with pytest.raises(InputError, match=message):
        read_weights(net, path)
    assert all(torch.equal(value, state(net)[name]) for name, value in before.items())


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        read_weights(network(), tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.weights"
    path.write_bytes(b"old")
    net = network()
    net.conv_blocks()[1].conv.weight = torch.nn.Parameter(torch.empty(6, 2, 1, 1, device="meta"))
    with pytest.raises(RuntimeError, match="meta"):  # torch's own, halfway through the file
        write_weights(net, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.weights"]
