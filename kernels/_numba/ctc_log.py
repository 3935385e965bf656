"""CTC on logarithms: slow, and right for any logits; for what the scaled lattice refuses."""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from interkd.kernels._numba.softmax import row_max

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


@njit(error_model="numpy", cache=True)
def _add_logs(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    if low == -np.inf:
        return high
    return high + math.log1p(math.exp(low - high))


@njit(error_model="numpy", cache=True)
def log_lattice(logits: Float32, labels: Int64, blank: int, occupancy: Float32) -> float:
    """Loss of one utterance, logits `(T, V)`; all in float64 logarithms.

    `occupancy` is that of `scaled_lattice`.
    """
    frames = logits.shape[0]
    count = 2 * labels.shape[0] + 1
    states = np.full(count, blank, np.int64)
    states[1::2] = labels
    emitted = np.empty((frames, count), np.float64)
    for t in range(frames):
        peak = np.float64(row_max(logits[t]))
        total = 0.0
        for v in range(logits.shape[1]):
            total += math.exp(np.float64(logits[t, v]) - peak)
        log_total = math.log(total)
        for s in range(count):
            # The peak would swallow the total's logarithm where logits are huge.
            emitted[t, s] = (np.float64(logits[t, states[s]]) - peak) - log_total

    alpha = np.full((frames, count), -np.inf)
    alpha[0, :2] = emitted[0, :2]
    for t in range(1, frames):
        for s in range(count):
            value = alpha[t - 1, s]
            if s > 0:
                value = _add_logs(value, alpha[t - 1, s - 1])
            if s > 1 and s % 2 == 1 and states[s] != states[s - 2]:
                value = _add_logs(value, alpha[t - 1, s - 2])
            alpha[t, s] = value + emitted[t, s]
    log_likelihood = alpha[frames - 1, count - 1]
    if count > 1:
        log_likelihood = _add_logs(log_likelihood, alpha[frames - 1, count - 2])
    if log_likelihood == -np.inf:
        occupancy[:frames] = 0.0
        return np.inf

    beta = np.full(count, -np.inf)
    onward = np.full(count + 2, -np.inf)
    beta[count - 1] = 0.0
    if count > 1:
        beta[count - 2] = 0.0
    for t in range(frames - 1, -1, -1):
        in_blank = 0.0
        for s in range(count):
            share = math.exp(alpha[t, s] + beta[s] - log_likelihood)
            if s % 2:
                occupancy[t, s // 2] = share
            else:
                in_blank += share
            onward[s] = beta[s] + emitted[t, s]
        occupancy[t, count // 2] = in_blank
        for s in range(count):
            value = _add_logs(onward[s], onward[s + 1])
            if s % 2 == 1 and s + 2 < count and states[s] != states[s + 2]:
                value = _add_logs(value, onward[s + 2])
            beta[s] = value
    return float(-log_likelihood)
