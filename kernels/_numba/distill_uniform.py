"""Sparse divergence of a frame whose tail mass is spread evenly over the tokens not kept."""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from interkd.kernels._numba.softmax import FAST, exp_row, scale_row, sum_row

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]


@njit(error_model="numpy", cache=True, fastmath=FAST)
def _sum_scaled(row: Float32, peak: np.float32, scale: np.float32) -> float:
    """Sum of `(row - peak) * scale`."""
    total = 0.0
    for v in range(row.shape[0]):
        total += (row[v] - peak) * scale
    return total


@njit(error_model="numpy", cache=True, fastmath=FAST)
def _squared_errors(q: Float32, each: np.float32) -> tuple[float, float]:
    """Sums of `(q - each)^2` and of `q * (q - each)`."""
    errors = 0.0
    weighted = 0.0
    for v in range(q.shape[0]):
        error = q[v] - each
        errors += error * error
        weighted += q[v] * error
    return errors, weighted


@njit(error_model="numpy", cache=True)
def uniform_frame(
    row: Float32,
    exponentials: Float32,
    peak: np.float32,
    tokens: Int32,
    first: int,
    end: int,
    probs: Float64,
    each: float,
    log_each: float,
    squared: bool,
    temperature: float,
    slopes: Float32,
    frame: Float32,
) -> float:
    """Divergence of a frame whose classes are all V tokens; overwrites `exponentials`.

    Args:
        row: See `class_frame`; so are all others that bear its names.
        exponentials: As there.
        peak: As there.
        tokens: As there.
        first: As there.
        end: As there.
        probs: As there.
        each: The teacher's probability of each token not kept.
        log_each: Its logarithm.
        squared: As there.
        temperature: As there.
        slopes: As there.
        frame: Shift, factor, `each` and `weighted`, to fill. With `q = factor * exp((z - shift) /
            temperature)` the gradient on any other logit z is `(q - each) / temperature`, for l2
            `2 q (q - each - weighted) / temperature`.
    """
    frame[:] = 0.0
    frame[0] = peak
    if each < 0:
        frame[2] = np.nan  # compares nothing
        for j in range(first, end):
            slopes[j] = 0.0
        return 0.0
    rest = row.shape[0] - (end - first)
    inverse = 1.0 / temperature
    if temperature != 1.0:
        exp_row(row, peak, np.float32(inverse), exponentials)
    total = sum_row(exponentials)
    log_total = math.log(total)
    scale = 1.0 / total

    loss = 0.0
    weighted = 0.0
    if squared:
        for j in range(first, end):
            q = exponentials[tokens[j]] * scale
            loss += (q - probs[0, j]) ** 2
            weighted += q * (q - probs[0, j])
            slopes[j] = q
            exponentials[tokens[j]] = each * total  # no error of its own in the sums below
        scale_row(exponentials, np.float32(scale))
        errors, products = _squared_errors(exponentials, np.float32(each))
        loss += errors
        weighted += products
        for j in range(first, end):
            q = np.float64(slopes[j])
            slopes[j] = 2.0 * q * ((q - probs[0, j]) - weighted) * inverse
    else:
        below = 0.0  # log-probabilities of the kept tokens, the normaliser left out
        for j in range(first, end):
            score = (np.float64(row[tokens[j]]) - np.float64(peak)) * inverse
            below += score
            p = probs[0, j]
            if p > 0:
                loss += p * (probs[1, j] - (score - log_total))
            slopes[j] = (exponentials[tokens[j]] * scale - p) * inverse
        if each > 0 and rest > 0:
            tail = _sum_scaled(row, peak, np.float32(inverse)) - below
            if not math.isfinite(tail):
                tail = _tail_sum(row, tokens[first:end], peak, temperature)
            loss += each * (rest * (log_each + log_total) - tail)
    frame[1] = scale
    frame[2] = each
    frame[3] = weighted
    return loss


@njit(error_model="numpy", cache=True)
def _tail_sum(row: Float32, tokens: Int32, peak: np.float32, temperature: float) -> float:
    """Sum of `(row - peak) / temperature` over the tokens not kept, where a kept one is -inf."""
    is_kept = np.zeros(row.shape[0], np.bool_)
    for j in range(tokens.shape[0]):
        is_kept[tokens[j]] = True
    total = 0.0
    for v in range(row.shape[0]):
        if not is_kept[v]:
            total += (np.float64(row[v]) - np.float64(peak)) / temperature
    return total
