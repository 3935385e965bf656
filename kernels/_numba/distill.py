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

_SMALLEST_SUM = 1e-25  # of exponentials that float32 made
_SMALLEST_TAIL = 1e-25  # of the frame's largest exponential; float32 still has 12 decades below


@njit(error_model="numpy", cache=True)
def teacher_probs(log_probs: Float32, probs: Float64) -> float:
    """Kept probabilities, to `probs`, and 1 less their sum, at least 0."""
    kept = 0.0
    for j in range(log_probs.shape[0]):
        probs[j] = math.exp(np.float64(log_probs[j]))
        kept += probs[j]
    return max(0.0, 1.0 - kept)


@njit(error_model="numpy", cache=True)
def soften(scores: Float64, weights: Float64, temperature: float) -> float:
    """Divides scores by the temperature, writes their softmax to `weights`.

    Returns:
        The logarithm of the normaliser: a class's log-probability is its score less that.
    """
    highest = -np.inf
    for c in range(scores.shape[0]):
        scores[c] /= temperature
        highest = max(highest, scores[c])
    total = 0.0
    for c in range(scores.shape[0]):
        weights[c] = math.exp(scores[c] - highest)
        total += weights[c]
    for c in range(scores.shape[0]):
        weights[c] /= total
    return highest + math.log(total)


@njit(error_model="numpy", cache=True)
def _tail(
    row: Float32, exponentials: Float32, peak: np.float32, tokens: Int32
) -> tuple[float, float]:
    """Shift and sum of the exponentials of the tokens not kept; overwrites `exponentials`."""
    for j in range(tokens.shape[0]):
        exponentials[tokens[j]] = 0.0
    total = sum_row(exponentials)
    shift = float(peak)
    if total < _SMALLEST_TAIL:  # nothing left beside the kept tokens: shift by the tail's own peak
        for j in range(tokens.shape[0]):
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
    log_probs: Float32,
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
        tokens: Kept by the teacher, `(K,)`.
        log_probs: The teacher's, `(K,)`.
        squared: `l2` instead of `kl`.
        bucket: Whether the tokens not kept are one more class.
        temperature: Above 0.
        scratch: `(4, C)` with C above K.
        slopes: Gradient on each kept token's logit, to fill, `(K,)`.
        frame: Shift and factor, to fill: the gradient on any other logit z is
            `factor * exp(z - shift)`.
    """
    kept = tokens.shape[0]
    with_tail = bucket and kept < row.shape[0]
    count = kept + 1 if with_tail else kept
    # Scores (log-masses, shifted) and probabilities of the classes.
    log_p, log_q = scratch[0, :count], scratch[1, :count]
    p, q = scratch[2, :count], scratch[3, :count]
    frame[0] = peak
    frame[1] = 0.0
    mass = teacher_probs(log_probs, p)
    q_total = 0.0
    p_total = 0.0
    for j in range(kept):
        log_p[j] = log_probs[j]
        log_q[j] = row[tokens[j]] - peak
        q[j] = exponentials[tokens[j]]
        p_total += p[j]
        q_total += q[j]
        slopes[j] = 0.0
    total = 0.0
    if with_tail:
        log_p[kept] = math.log(mass) if mass > 0 else -np.inf
        p[kept] = mass
        shift, total = _tail(row, exponentials, peak, tokens)
        frame[0] = shift
        # A tail of no mass, unlike one of no number, has no logarithm.
        log_q[kept] = (shift - peak) + math.log(total) if not total <= 0 else -np.inf
        q[kept] = total if shift == peak else math.exp(log_q[kept])
        p_total += mass
        q_total += q[kept]
    if p_total == 0 and (count == 0 or log_p.max() == -np.inf):
        return 0.0
    if temperature == 1.0 and p_total > _SMALLEST_SUM:
        p_log_total, p_scale = math.log(p_total), 1.0 / p_total
    else:
        p_log_total, p_scale = soften(log_p, p, temperature), 1.0
    if temperature == 1.0 and q_total > _SMALLEST_SUM:
        q_log_total, q_scale = math.log(q_total), 1.0 / q_total
    else:
        q_log_total, q_scale = soften(log_q, q, temperature), 1.0

    loss = 0.0
    weighted = 0.0
    inverse = 1.0 / temperature
    if squared:
        for c in range(count):
            p[c] *= p_scale
            q[c] *= q_scale
            loss += (p[c] - q[c]) ** 2
            weighted += q[c] * (q[c] - p[c])
        for c in range(count):
            q[c] = 2.0 * q[c] * ((q[c] - p[c]) - weighted) * inverse
    else:
        log_ratio = p_log_total - q_log_total
        for c in range(count):
            share = p[c] * p_scale
            if share > 0:
                loss += share * ((log_p[c] - log_q[c]) - log_ratio)
            q[c] = (q[c] * q_scale - share) * inverse
    for j in range(kept):
        slopes[j] = q[j]
    if with_tail and total != 0:
        frame[1] = q[kept] / total
    return loss
