"""The polynomial exponential and the NaN-safe maximum that the numba backends stand on."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

softmax = importlib.import_module("interkd.kernels._numba.softmax")


def test_exponential_is_right_to_three_in_ten_million() -> None:
    x = np.linspace(-87, 0, 200_003).astype(np.float32)
    out = np.empty_like(x)
    total = softmax.exp_row(x, np.float32(0), np.float32(1), out)
    expected = np.exp(x.astype(np.float64))
    assert np.max(np.abs(out - expected) / expected) < 3e-7
    assert total == pytest.approx(float(expected.sum()), rel=1e-6)


def test_exponential_of_the_extremes() -> None:
    x = np.array([-np.inf, -1e30, -87.1, -0.0, np.nan], np.float32)
    out = np.empty_like(x)
    assert np.isnan(softmax.exp_row(x, np.float32(0), np.float32(1), out))
    np.testing.assert_array_equal(out, np.array([0, 0, 0, 1, np.nan], np.float32))


@pytest.mark.parametrize("size", [1, 7, 67])
def test_maximum(size: int) -> None:
    generator = np.random.default_rng(size)
    x = generator.normal(size=size).astype(np.float32)
    assert softmax.row_max(x) == x.max()
    assert softmax.row_max(x - np.float32(50)) == x.max() - np.float32(50)
    x[size // 2] = np.nan
    assert np.isnan(softmax.row_max(x))
    assert softmax.row_max(np.full(size, -np.inf, np.float32)) == -np.inf
