"""Sparse divergence of a frame whose tail mass is spread evenly over the tokens not kept."""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from interkd.kernels._numba.distill import soften, teacher_probs
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
    log_probs: Float32,
    squared: bool,
    temperature: float,
    scratch: Float64,
    slopes: Float32,
    frame: Float32,
) -> float:
    """Divergence of a frame whose classes are all V tokens; overwrites `exponentials`.

    Args:
        row: Logits, `(V,)`.
        exponentials: `exp(row - peak)`, `(V,)`.
        peak: Largest logit.
        tokens: Kept by the teacher, `(K,)`.
        log_probs: The teacher's, `(K,)`.
        squared: `l2` instead of `kl`.
        temperature: Above 0.
        scratch: `(4, C)` with C above K.
        slopes: Gradient on each kept token's logit, to fill, `(K,)`.
        frame: Shift, factor, `each` and `weighted`, to fill. With `q = factor * exp((z - shift) /
            temperature)` the gradient on any other logit z is `(q - each) / temperature`, for l2
            `2 q (q - each - weighted) / temperature`.
    """
    kept = tokens.shape[0]
    rest = row.shape[0] - kept
    log_p, log_q = scratch[0, : kept + 1], scratch[1, :kept]
    p, q = scratch[2, : kept + 1], scratch[3, :kept]
    mass = teacher_probs(log_probs, p)
    for j in range(kept):
        log_p[j] = log_probs[j]
        slopes[j] = 0.0
    log_p[kept] = math.log(mass / rest) if rest > 0 and mass > 0 else -np.inf
    frame[:] = 0.0
    frame[0] = peak
    if log_p.max() == -np.inf:
        frame[2] = np.nan  # compares nothing
        return 0.0
    # The last of the classes is `rest` alike: its score stands for them all while it is softened.
    log_p[kept] += math.log(rest) * temperature if rest > 0 else 0.0
    log_total = soften(log_p, p, temperature)
    each = p[kept] / rest if rest > 0 else 0.0
    log_each = log_p[kept] - log_total - (math.log(rest) if rest > 0 else 0.0)
    for j in range(kept):
        log_p[j] -= log_total

    scale = np.float32(1.0 / temperature)
    if temperature != 1.0:
        exp_row(row, peak, scale, exponentials)
    total = sum_row(exponentials)
    log_total = math.log(total)
    for j in range(kept):
        log_q[j] = (np.float64(row[tokens[j]]) - np.float64(peak)) / temperature - log_total
        q[j] = exponentials[tokens[j]] / total

    loss = 0.0
    weighted = 0.0
    if squared:
        scale_row(exponentials, np.float32(1.0 / total))
        for j in range(kept):
            exponentials[tokens[j]] = each  # no error of its own in the sums below
        loss, weighted = _squared_errors(exponentials, np.float32(each))
        for j in range(kept):
            loss += (p[j] - q[j]) ** 2
            weighted += q[j] * (q[j] - p[j])
    else:
        for j in range(kept):
            if p[j] > 0:
                loss += p[j] * (log_p[j] - log_q[j])
        if each > 0:
            tail = _sum_scaled(row, peak, scale)
            for j in range(kept):
                tail -= log_q[j] + log_total
            if not math.isfinite(tail):
                tail = _tail_sum(row, tokens, peak, temperature)
            loss += each * (rest * (log_each + log_total) - tail)

    frame[1] = 1.0 / total
    frame[2] = each
    frame[3] = weighted
    for j in range(kept):
        slope = 2.0 * q[j] * ((q[j] - p[j]) - weighted) if squared else q[j] - p[j]
        slopes[j] = slope / temperature
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
