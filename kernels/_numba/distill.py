"""Divergence of one frame on the CPU, whose classes are the kept tokens and maybe one for the rest.

Everything as wide as the vocabulary is float32; the few classes of a frame are float64.
"""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from interkd.kernels._numba.softmax import sum_row

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

# Of exponentials below the frame's largest logit; float32 still has 12 decades below.
_SMALLEST_SUM = 1e-25


@njit(error_model="numpy", cache=True)
def _soften(scores: Float64, weights: Float64, count: int, inverse: float) -> float:
    """Multiplies scores by the inverse temperature, writes their softmax to `weights`.

    Returns:
        The logarithm of the normaliser: a class's log-probability is its score less that.
    """
    highest = -np.inf
    for c in range(count):
        scores[c] *= inverse
        highest = max(highest, scores[c])
    total = 0.0
    for c in range(count):
        weights[c] = math.exp(scores[c] - highest)
        total += weights[c]
    for c in range(count):
        weights[c] /= total
    return highest + math.log(total)


@njit(error_model="numpy", cache=True)
def _tail(
    row: Float32, exponentials: Float32, peak: np.float32, tokens: Int32, first: int, end: int
) -> tuple[float, float]:
    """Shift and sum of the exponentials of the tokens not kept; overwrites `exponentials`."""
    for j in range(first, end):
        exponentials[tokens[j]] = 0.0
    total = sum_row(exponentials)
    shift = float(peak)
    if total < _SMALLEST_SUM:  # nothing left beside the kept tokens: shift by the tail's own peak
        for j in range(first, end):
            exponentials[tokens[j]] = np.nan
        shift = -np.inf
        for v in range(row.shape[0]):
            if not math.isnan(exponentials[v]) and row[v] > shift:
                shift = float(row[v])
        total = 0.0
        for v in range(row.shape[0]):
            if not math.isnan(exponentials[v]) and row[v] != -np.inf:
                total += math.exp(np.float64(row[v]) - shift)
    return shift, total


@njit(error_model="numpy", cache=True)
def class_frame(
    row: Float32,
    exponentials: Float32,
    peak: np.float32,
    tokens: Int32,
    first: int,
    end: int,
    probs: Float64,
    rest: float,
    log_rest: float,
    squared: bool,
    bucket: bool,
    temperature: float,
    scratch: Float64,
    slopes: Float32,
    frame: Float32,
) -> float:
    """Divergence of a frame; overwrites `exponentials`.

    Args:
        row: Logits, `(V,)`.
        exponentials: `exp(row - peak)`, `(V,)`.
        peak: Largest logit.
        tokens: All kept tokens, `(E,)`, of which the frame has those from `first`.
        first: Its first entry.
        end: The entry after its last.
        probs: The teacher's, `(2, E)`; see `soften_teacher`.
        rest: The teacher's probability of the tail's class.
        log_rest: Its logarithm.
        squared: `l2` instead of `kl`.
        bucket: Whether the tokens not kept are one more class.
        temperature: Above 0.
        scratch: `(2, C)` with C above the frame's entries.
        slopes: Gradient on each kept token's logit, to fill, `(E,)`.
        frame: Shift and factor, to fill: the gradient on any other logit z is
            `factor * exp(z - shift)`.
    """
    kept = end - first
    with_tail = bucket and kept < row.shape[0]
    count = kept + 1 if with_tail else kept
    log_q, q = scratch[0], scratch[1]
    frame[0] = peak
    frame[1] = 0.0
    if rest < 0:
        for j in range(first, end):
            slopes[j] = 0.0
        return 0.0
    q_total = 0.0
    for c in range(kept):
        token = tokens[first + c]
        log_q[c] = row[token] - peak
        q[c] = exponentials[token]
        q_total += q[c]
    total = 0.0
    if with_tail:
        shift, total = _tail(row, exponentials, peak, tokens, first, end)
        frame[0] = shift
        # A tail of no mass, unlike one of no number, has no logarithm.
        log_q[kept] = (shift - peak) + math.log(total) if not total <= 0 else -np.inf
        q[kept] = total if shift == peak else math.exp(log_q[kept])
        q_total += q[kept]
    inverse = 1.0 / temperature
    if temperature == 1.0 and q_total > _SMALLEST_SUM:
        log_total, scale = math.log(q_total), 1.0 / q_total
    else:
        log_total, scale = _soften(log_q, q, count, inverse), 1.0

    loss = 0.0
    weighted = 0.0
    q_rest = q[kept] * scale if with_tail else 0.0
    if squared:
        if with_tail:
            loss = (rest - q_rest) ** 2
            weighted = q_rest * (q_rest - rest)
        for c in range(kept):
            q[c] *= scale
            error = q[c] - probs[0, first + c]
            loss += error * error
            weighted += q[c] * error
        for c in range(kept):
            error = q[c] - probs[0, first + c]
            slopes[first + c] = 2.0 * q[c] * (error - weighted) * inverse
    else:
        if rest > 0 and with_tail:
            loss = rest * (log_rest - (log_q[kept] - log_total))
        for c in range(kept):
            p = probs[0, first + c]
            if p > 0:
                loss += p * (probs[1, first + c] - (log_q[c] - log_total))
            slopes[first + c] = (q[c] * scale - p) * inverse
    if with_tail and total != 0:
        slope = q_rest - rest
        if squared:
            slope = 2.0 * q_rest * (slope - weighted)
        frame[1] = slope * inverse / total
    return loss
