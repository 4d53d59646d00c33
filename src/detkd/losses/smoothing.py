"""Windows that slide over a map, as two small matrices: any map size, renormalised at the borders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from detkd.errors import InputError

Window = Literal["gaussian", "uniform"]
# Sides longer than _DENSE cells are multiplied in blocks: a dense matrix would touch the whole side for each cell.
_DENSE, _BLOCK = 48, 16
_EXACT = ("none", "ieee")  # values of fp32_precision; "none" is unset


def check_window(term: str, window: str, size: int, sigma: float) -> None:
    """Raises InputError, naming the term's key, unless the window is known, odd, and of positive width."""
    if window not in get_args(Window):
        raise InputError(f"loss.{term}.window: expected one of {', '.join(get_args(Window))}, got {window!r}")
    if size < 1 or size % 2 == 0:
        raise InputError(f"loss.{term}: expected windows of an odd number of cells, got {size}")
    if not sigma > 0:
        raise InputError(f"loss.{term}.sigma: expected a positive number of cells, got {sigma}")


def window_matrix(cells: int, window: Window, size: int, sigma: float, like: Tensor) -> Tensor:
    """(cells, cells) weights: row i has the window centred on cell i, cut at the borders and summing to 1.

    Args:
        window: "gaussian" exp(-d^2 / (2 sigma^2)) or "uniform". size: cells, odd; it may exceed ``cells``. sigma: in cells.
        like: gives type and device.
    """
    place = torch.arange(cells, device=like.device)
    distance = (place[:, None] - place).to(like.dtype)
    weights = torch.exp(-distance.square() / (2 * sigma**2)) if window == "gaussian" else torch.ones_like(distance)
    weights = weights * (distance.abs() <= size // 2)
    return weights / weights.sum(1, keepdim=True)


class Smoothing:
    """A separable window over maps of one size.

    Padding with zeros and dividing by the weights that fell inside is the same as cutting the window, and separable too.

    Args:
        height, width: of the maps. window, size, sigma, like: see :func:`window_matrix`.
    """

    def __init__(self, height: int, width: int, window: Window, size: int, sigma: float, like: Tensor) -> None:
        self.rows = window_matrix(height, window, size, sigma, like)
        self.columns = window_matrix(width, window, size, sigma, like)
        reach = size // 2
        self._row_blocks = [_blocks(rows, reach) for rows in (self.rows, self.rows.T)]
        self._column_blocks = [
            [(block, of_block, weights.T) for block, of_block, weights in _blocks(columns, reach)]
            for columns in (self.columns, self.columns.T)
        ]

    def __call__(self, maps: Tensor) -> Tensor:
        """(k, H, n, W) maps, rows before planes, to weighted means around each cell, same shape. Differentiable."""
        return (self.rows @ (maps @ self.columns.T).flatten(2)).view_as(maps)

    def write(self, maps: Tensor, scratch: Tensor, out: Tensor, transposed: bool = False) -> Tensor:
        """The same into ``out``, without a gradient and without touching new memory, which costs more than the products.

        Args:
            maps, scratch, out: contiguous, of one shape (k, H, n, W), three different ones.
            transposed: the adjoint instead, a gradient to the means to the gradient to the maps.
        """
        count, height, _, width = maps.shape
        lines, half = maps.view(-1, width), scratch.view(-1, width)
        for block, of_block, weights in self._column_blocks[transposed]:
            torch.mm(lines[:, of_block], weights, out=half[:, block])
        rows, done = scratch.view(count, height, -1), out.view(count, height, -1)
        for block, of_block, weights in self._row_blocks[transposed]:
            torch.bmm(weights.expand(count, -1, -1), rows[:, of_block], out=done[:, block])
        return out

    def unbiased(self) -> Tensor:
        """(H, W) factors 1 / (1 - sum w^2) that take the bias off a variance: n / (n - 1) for n equal weights; 1 where one cell is all."""
        squares = self.rows.square().sum(1)[:, None] * self.columns.square().sum(1)  # (H, W)
        return torch.where(squares < 1 - 1e-6, 1 / (1 - squares).clamp(min=1e-6), torch.ones_like(squares))


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 nor bfloat16 inside float32 products: a variance as E[x^2] - E[x]^2 would drown in their rounding.

    Whichever way the caller has set the precision, it is the same again afterwards: by ``torch.set_float32_matmul_precision``, by
    ``torch.backends.cuda.matmul.fp32_precision`` (torch 2.9 and later), or by both.
    """
    backends = _backends()
    before = [backend.fp32_precision for backend in backends]
    if all(precision in _EXACT for precision in before):
        plain = torch.get_float32_matmul_precision()
        if plain == "highest":
            yield
            return
    else:
        # the older setting cannot be read while the newer ones contradict it
        for backend in backends:
            backend.fp32_precision = "ieee"
        plain = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(plain)
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def _backends() -> list[Any]:
    """What has an ``fp32_precision`` of products; before torch 2.9 nothing."""
    found = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    return [backend for backend in found if hasattr(backend, "fp32_precision")]


def _blocks(weights: Tensor, reach: int) -> list[tuple[slice, slice, Tensor]]:
    """Of each block: its cells, the cells that it reads, and its weights (cells, cells read)."""
    cells = len(weights)
    block = cells if cells <= _DENSE else _BLOCK
    blocks = []
    for i in range(0, cells, block):
        own, read = slice(i, min(i + block, cells)), slice(max(0, i - reach), min(cells, i + block + reach))
        blocks.append((own, read, weights[own, read].contiguous()))
    return blocks
