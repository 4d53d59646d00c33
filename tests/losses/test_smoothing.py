from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from detkd.errors import InputError
from detkd.losses import smoothing
from detkd.losses.smoothing import Smoothing, check_window, exact_products, window_matrix
from detkd.losses.ssim import ssim_loss

DOUBLE = torch.zeros((), dtype=torch.float64)


def reference(maps: Any, window: str, size: int, sigma: float) -> tuple[Any, Any]:
    """Weighted means and sums of squared weights around each cell of (n, H, W), by loops."""
    height, width = maps.shape[1:]
    out, squares = np.zeros(maps.shape), np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            total, sum_of_weights, sum_of_squares = 0.0, 0.0, 0.0
            for y in range(max(0, i - size // 2), min(height, i + size // 2 + 1)):
                for x in range(max(0, j - size // 2), min(width, j + size // 2 + 1)):
                    weight = np.exp(-((y - i) ** 2 + (x - j) ** 2) / (2 * sigma**2)) if window == "gaussian" else 1.0
                    total = total + weight * maps[:, y, x]
                    sum_of_weights += weight
                    sum_of_squares += weight**2
            out[:, i, j] = total / sum_of_weights
            squares[i, j] = sum_of_squares / sum_of_weights**2
    return out, squares


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(1, 1, 11), (3, 5, 11), (16, 13, 5), (7, 2, 1), (3, 150, 7), (140, 2, 3)]
)
def test_equals_a_window_cut_at_the_borders(height: int, width: int, size: int, window: Any) -> None:
    maps = torch.randn(2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = Smoothing(height, width, window, size, 1.5, maps)
    expected, squares = reference(maps.numpy(), window, size, 1.5)
    found = smooth(maps.transpose(0, 1)[None])[0].transpose(0, 1)  # rows before planes
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    alone = squares > 1 - 1e-6
    np.testing.assert_allclose(smooth.unbiased().numpy(), np.where(alone, 1, 1 / np.where(alone, 1, 1 - squares)), rtol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (130, 131), (49, 1)])
def test_writing_is_the_same_and_transposed_the_adjoint(height: int, width: int) -> None:
    a, b = torch.randn(2, 3, height, 4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = Smoothing(height, width, "gaussian", 11, 1.5, a)
    scratch, out = torch.empty(2, 3, height, 4, width, dtype=torch.float64)
    torch.testing.assert_close(smooth.write(a, scratch, out), smooth(a))
    product = (smooth(a) * b).sum()
    torch.testing.assert_close((a * smooth.write(b, scratch, out, transposed=True)).sum(), product)


def test_rows_sum_to_one() -> None:
    for cells in (1, 4, 30):
        torch.testing.assert_close(window_matrix(cells, "gaussian", 11, 1.5, DOUBLE).sum(1), torch.ones(cells).double())


NEW = [b for b in (torch.backends.cuda.matmul, torch.backends.mkldnn) if hasattr(b, "fp32_precision")]
needs_new = pytest.mark.skipif(not NEW, reason="torch before 2.9 has one way to set the precision")


@pytest.fixture
def precision() -> Iterator[None]:
    """As torch starts, before and after."""
    yield
    torch.set_float32_matmul_precision("highest")
    for backend in backends():
        backend.fp32_precision = "none"


def backends() -> list[Any]:
    return [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul] if NEW else []  # type: ignore[attr-defined]


def set_by_backend(*values: str) -> None:
    for backend, value in zip(backends(), values, strict=True):
        backend.fp32_precision = value


def set_both(older: str, newer: str) -> None:
    torch.set_float32_matmul_precision(older)
    set_by_backend(newer, newer)


WAYS: dict[str, Callable[[], None]] = {
    "untouched": lambda: None,
    "old": lambda: torch.set_float32_matmul_precision("high"),
    "old_medium": lambda: torch.set_float32_matmul_precision("medium"),
}
NEW_WAYS: dict[str, Callable[[], None]] = {
    "cuda": lambda: set_by_backend("tf32", "none"),
    "cpu": lambda: set_by_backend("ieee", "bf16"),
    "old_and_new": lambda: set_both("medium", "tf32"),
    "exact_after_old": lambda: set_both("high", "ieee"),
    "all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


def settings() -> list[str]:
    """The newer settings, then the older one, which says nothing while they contradict it."""
    newer = [backend.fp32_precision for backend in backends()]
    for backend in backends():
        backend.fp32_precision = "ieee"
    older = torch.get_float32_matmul_precision()
    if newer:
        set_by_backend(*newer)
    return [*newer, older]


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=needs_new) for way in NEW_WAYS)])
@pytest.mark.usefixtures("precision")
def test_products_are_exact_inside_and_as_before_outside(way: str) -> None:
    (WAYS | NEW_WAYS)[way]()
    try:
        before = settings()
        for _ in range(2):
            with exact_products():
                assert torch.get_float32_matmul_precision() == "highest"
                assert {backend.fp32_precision for backend in backends()} <= {"none", "ieee"}
                ssim_loss(torch.rand(1, 2, 5, 5), torch.rand(1, 2, 5, 5))
            assert settings() == before
        with pytest.raises(KeyError), exact_products():
            raise KeyError
        assert settings() == before
    finally:
        if way == "all":
            torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("precision")
def test_exact_products_where_torch_has_the_older_setting_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "_backends", list)
    torch.set_float32_matmul_precision("medium")
    with exact_products():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize(
    ("window", "size", "sigma", "message"),
    [("round", 11, 1.5, "window"), ("gaussian", 10, 1.5, "odd"), ("gaussian", -1, 1.5, "odd"), ("gaussian", 11, 0, "sigma")],
)
def test_wrong_windows_are_refused(window: str, size: int, sigma: float, message: str) -> None:
    with pytest.raises(InputError, match=rf"loss.ssim.*{message}"):
        check_window("ssim", window, size, sigma)
