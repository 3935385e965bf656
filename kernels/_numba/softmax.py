"""Pieces of a softmax row for numba: a NaN-safe maximum and a polynomial float32 exponential."""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Reordering and contraction only: NaN and infinity keep their meaning.
FAST = {"contract", "reassoc", "arcp", "nsz"}

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87.0)
_SIGN_SHIFT = np.int32(31)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_BLOCK = 512


@njit(error_model="numpy", cache=True, fastmath=FAST)
def exp_float32(x: np.float32) -> np.float32:
    """`exp(x)` for x at most 0, to 3e-7 relative; exactly 0 below -87; NaN stays NaN.

    Source: the Cephes library's expf (range reduction by ln 2, degree-5 polynomial).
    """
    inside = _LOWEST if x < _LOWEST else x
    power = np.floor(inside * _LOG2_E + np.float32(0.5))
    r = inside - power * _LN2_HIGH - power * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    value = p * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(0.0) if x < _LOWEST else value


@njit(error_model="numpy", cache=True, fastmath=FAST)
def exp_float64(x: float) -> float:
    """`exp(x)` for x at most 0, to 3e-16 relative; exactly 0 below -700; NaN stays NaN.

    Unlike `math.exp` it vectorises. Source: the Cephes library's exp (a rational function).
    """
    inside = -700.0 if x < -700.0 else x
    power = np.floor(inside * 1.4426950408889634 + 0.5)
    r = inside - power * 6.93145751953125e-1 - power * 1.42860682030941723212e-6
    square = r * r
    odd = 1.26177193074810590878e-4 * square + 3.02994407707441961300e-2
    odd = (odd * square + 9.99999999999999999910e-1) * r
    even = 3.00198505138664455042e-6 * square + 2.52448340349684104192e-3
    even = (even * square + 2.27265548208155028766e-1) * square + 2.0
    value = 1.0 + 2.0 * odd / (even - odd)
    exponent = np.int64(np.int32(power))  # by way of 32 bits, which AVX2 converts to
    value *= np.int64((exponent + 1023) << 52).view(np.float64)
    result: float = 0.0 if x < -700.0 else value
    return result


@njit(error_model="numpy", cache=True)
def row_max(row: NDArray[np.float32]) -> np.float32:
    """Largest value of a row, NaN if it holds a positive NaN.

    Compared as integers of the same order, which vectorises without telling the compiler that
    NaN cannot occur.
    """
    best = np.int32(-2147483648)
    for v in range(row.shape[0]):
        bits = np.float32(row[v]).view(np.int32)
        key = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _MAGNITUDE))
        best = key if key > best else best
    return np.int32(best ^ np.int32(np.int32(best >> _SIGN_SHIFT) & _MAGNITUDE)).view(np.float32)


@njit(error_model="numpy", cache=True, fastmath=FAST)
def exp_row(
    row: NDArray[np.float32], peak: np.float32, scale: np.float32, out: NDArray[np.float32]
) -> float:
    """Writes `exp((row - peak) * scale)` to `out` and returns its sum."""
    for v in range(row.shape[0]):
        out[v] = exp_float32((row[v] - peak) * scale)
    total: float = sum_row(out)
    return total


@njit(error_model="numpy", cache=True, fastmath=FAST)
def sum_row(row: NDArray[np.float32]) -> float:
    """Sum of a row: float32 within a block, float64 over blocks, so that long rows stay exact."""
    total = 0.0
    for start in range(0, row.shape[0], _BLOCK):
        part = np.float32(0.0)
        for v in range(start, min(start + _BLOCK, row.shape[0])):
            part += row[v]
        total += np.float64(part)
    return total


@njit(error_model="numpy", cache=True, fastmath=FAST)
def scale_row(row: NDArray[np.float32], factor: np.float32) -> None:
    """Multiplies a row by a factor, in place."""
    for v in range(row.shape[0]):
        row[v] *= factor


@njit(error_model="numpy", cache=True, fastmath=FAST)
def scaled_exp_row(
    row: NDArray[np.float32], peak: np.float32, factor: np.float32, out: NDArray[np.float32]
) -> None:
    """Writes `factor * exp(row - peak)` to `out`."""
    for v in range(row.shape[0]):
        out[v] = exp_float32(row[v] - peak) * factor


@njit(error_model="numpy", cache=True, fastmath=FAST)
def add_exp_row(
    row: NDArray[np.float32], peak: np.float32, factor: np.float32, out: NDArray[np.float32]
) -> None:
    """Adds `factor * exp(row - peak)` to `out`, where that is at most `factor`."""
    for v in range(row.shape[0]):
        x = row[v] - peak
        out[v] += exp_float32(x if x < 0 else np.float32(0.0)) * factor


@njit(error_model="numpy", cache=True, fastmath=FAST)
def add_uniform_slopes(
    row: NDArray[np.float32],
    shift: np.float32,
    scale: np.float32,
    each: np.float32,
    weighted: np.float32,
    temperature: float,
    factor: np.float32,
    squared: bool,
    out: NDArray[np.float32],
) -> None:
    """Adds `factor` times the gradient that `uniform_frame` describes to `out`."""
    inverse = np.float32(1.0 / temperature)
    outer = factor * inverse * np.float32(2.0 if squared else 1.0)
    for v in range(row.shape[0]):
        q = exp_float32((row[v] - shift) * inverse) * scale
        error = q - each
        out[v] += outer * q * (error - weighted) if squared else outer * error
