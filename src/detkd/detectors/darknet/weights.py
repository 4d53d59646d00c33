"""Darknet's .weights format: a short header, then little-endian float32 values, convolution by convolution.

Header: int32 major, minor, revision; then the number of images seen, int64 from version 0.2 on, int32 before.
A convolution stores its biases (with batch norm: beta, gamma, running mean, running variance), then its kernel.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detkd.detectors.darknet.network import ConvBlock, Darknet
from detkd.disk import replacing
from detkd.errors import InputError

DEFAULT_HEADER = struct.pack("<iiiq", 0, 2, 5, 0)


def read_weights(network: Darknet, path: Path) -> bytes:
    """Fill ``network`` from a .weights file and return the file's header.

    Raises InputError when the file is missing, too short or too long for the network; the network is then unchanged.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a .weights file, found {error.strerror}") from None
    header_size = _header_size(content, path)
    tensors = [t for block in network.conv_blocks() for t in _tensors(block)]
    expected, found = sum(t.numel() for t in tensors), (len(content) - header_size) / 4
    if found != expected:
        what = "truncated, or of another cfg" if found < expected else "oversized: of another cfg"
        raise InputError(f"{path}: expected {expected} values for this cfg, found {found:g} ({what})")
    values = torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=header_size).astype(np.float32))
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(values[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
    return content[:header_size]


def write_weights(network: Darknet, path: Path, header: bytes = DEFAULT_HEADER) -> None:
    """Write ``network`` as a .weights file, atomically. With the header that was read, a file comes back bit for bit."""
    tensors = [t for block in network.conv_blocks() for t in _tensors(block)]
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(header)
        for tensor in tensors:
            file.write(tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes())


def _header_size(content: bytes, path: Path) -> int:
    if len(content) < 16:
        raise InputError(f"{path}: expected a darknet header of at least 16 bytes, found {len(content)} bytes")
    major, minor, _ = struct.unpack_from("<iii", content)
    if not (0 <= major < 1000 and 0 <= minor < 1000):
        raise InputError(f"{path}: expected a darknet header (version numbers), found {major}.{minor}: not a .weights file")
    return 20 if major * 10 + minor >= 2 else 16


def _tensors(block: ConvBlock) -> list[Tensor]:
    """The tensors of a block in the order of the file."""
    kernel = block.conv.weight
    if isinstance(block.norm, nn.BatchNorm2d):
        mean, var = block.norm.running_mean, block.norm.running_var
        assert mean is not None
        assert var is not None
        return [block.norm.bias, block.norm.weight, mean, var, kernel]
    assert block.conv.bias is not None
    return [block.conv.bias, kernel]
