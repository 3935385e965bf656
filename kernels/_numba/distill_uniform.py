"""Sparse divergence of a frame whose tail mass is spread evenly over the tokens not kept."""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from interkd.kernels._numba.softmax import FAST, exp_row, row_max, scale_row

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@njit(error_model="numpy", cache=True)
def tail_mass(log_probs: Float32) -> float:
    kept = 0.0
    for j in range(log_probs.shape[0]):
        kept += math.exp(np.float64(log_probs[j]))
    return max(0.0, 1.0 - kept)


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


@njit(error_model="numpy", cache=True, fastmath=FAST)
def _uniform_slopes(
    q: Float32, each: np.float32, weighted: np.float32, factor: np.float32, squared: bool
) -> None:
    """The gradient of tokens that share the tail, over q in place."""
    if squared:
        for v in range(q.shape[0]):
            q[v] = factor * q[v] * ((q[v] - each) - weighted)
    else:
        for v in range(q.shape[0]):
            q[v] = factor * (q[v] - each)


@njit(error_model="numpy", cache=True)
def uniform_frame(
    row: Float32,
    tokens: Int32,
    log_probs: Float32,
    squared: bool,
    temperature: float,
    out: Float32,
) -> float:
    """Frame whose classes are all V tokens, the teacher's tail mass spread evenly."""
    kept = tokens.shape[0]
    rest = row.shape[0] - kept
    mass = tail_mass(log_probs) if rest > 0 else 0.0
    log_each = math.log(mass / rest) / temperature if mass > 0 else -np.inf
    teacher = np.empty(kept, np.float64)
    student = np.empty(kept, np.float64)
    highest = log_each
    for j in range(kept):
        teacher[j] = log_probs[j] / temperature
        highest = max(highest, teacher[j])
    if highest == -np.inf:
        out[:] = 0.0
        return 0.0
    total = rest * math.exp(log_each - highest)
    for j in range(kept):
        total += math.exp(teacher[j] - highest)
    normaliser = highest + math.log(total)
    log_each -= normaliser
    each = math.exp(log_each)

    scale = np.float32(1.0 / temperature)
    peak = row_max(row)
    total = exp_row(row, peak, scale, out)
    log_total = math.log(total)
    scale_row(out, np.float32(1.0 / total))
    for j in range(kept):
        teacher[j] -= normaliser
        student[j] = (np.float64(row[tokens[j]]) - np.float64(peak)) / temperature - log_total

    loss = 0.0
    weighted = 0.0
    if squared:
        for j in range(kept):
            out[tokens[j]] = each  # no error of its own in the sums below
        loss, weighted = _squared_errors(out, np.float32(each))
        for j in range(kept):
            p, q = math.exp(teacher[j]), math.exp(student[j])
            loss += (p - q) ** 2
            weighted += q * (q - p)
    else:
        for j in range(kept):
            p = math.exp(teacher[j])
            if p > 0:
                loss += p * (teacher[j] - student[j])
        if each > 0:
            tail = _sum_scaled(row, peak, scale)
            for j in range(kept):
                tail -= student[j] + log_total
            if not math.isfinite(tail):
                tail = _tail_sum(row, tokens, peak, temperature)
            loss += each * (rest * (log_each + log_total) - tail)

    factor = 1.0 / temperature
    _uniform_slopes(
        out,
        np.float32(each),
        np.float32(weighted),
        np.float32(2.0 * factor if squared else factor),
        squared,
    )
    for j in range(kept):
        p, q = math.exp(teacher[j]), math.exp(student[j])
        slope = 2.0 * q * ((q - p) - weighted) if squared else q - p
        out[tokens[j]] = slope * factor
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
