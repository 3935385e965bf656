"""One frame's part of the CTC recursion: loops over views, which the compiler turns into vectors.

Indexing from a band's first state instead would keep it from that: numba cannot know that the
index is not negative.
"""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from interkd.kernels._numba.softmax import FAST

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@njit(error_model="numpy", cache=True, fastmath=FAST)
def add_and_min(probs: Float32, sums: Float64, smallest: np.float32) -> np.float32:
    """Adds probabilities to their sums; the smallest of them and of `smallest`."""
    for k in range(probs.shape[0]):
        sums[k] += probs[k]
        smallest = min(smallest, probs[k])
    return smallest


@njit(error_model="numpy", cache=True)
def clear_around(row: Float64, first: int, end: int) -> None:
    """Zeroes two places on either side of a band."""
    for k in range(max(first - 2, 0), min(first, row.shape[0])):
        row[k] = 0.0
    for k in range(end, min(end + 2, row.shape[0])):
        row[k] = 0.0


@njit(error_model="numpy", cache=True, fastmath=FAST)
def alpha_blanks(now: Float64, blank: Float64, label: Float64, prob: float) -> float:
    """Alpha of the blank states from the frame before, `label` the one left of each; their sum."""
    total = 0.0
    for k in range(now.shape[0]):
        value = (blank[k] + label[k]) * prob
        now[k] = value
        total += value
    return total


@njit(error_model="numpy", cache=True, fastmath=FAST)
def alpha_labels(
    now: Float64,
    label: Float64,
    blank: Float64,
    label_left: Float64,
    enter: Float64,
    skip: Float64,
    probs: Float32,
    inverse: float,
) -> float:
    """Alpha of the label states from the frame before; their sum."""
    total = 0.0
    for k in range(now.shape[0]):
        value = label[k] + enter[k] * blank[k] + skip[k] * label_left[k]
        value *= probs[k] * inverse
        now[k] = value
        total += value
    return total


@njit(error_model="numpy", cache=True, fastmath=FAST)
def beta_blanks(
    now: Float64, blank: Float64, label: Float64, enter: Float64, alpha: Float64
) -> tuple[float, float]:
    """Beta of the blank states from the frame after, `label` the one right of each.

    Returns:
        Their sum, and the sum of alpha times beta.
    """
    total = 0.0
    overlap = 0.0
    for k in range(now.shape[0]):
        value = blank[k] + enter[k] * label[k]
        now[k] = value
        total += value
        overlap += value * alpha[k]
    return total, overlap


@njit(error_model="numpy", cache=True, fastmath=FAST)
def beta_labels(
    now: Float64,
    label: Float64,
    blank: Float64,
    label_right: Float64,
    skip: Float64,
    alpha: Float64,
) -> tuple[float, float]:
    """Beta of the label states from the frame after; what `beta_blanks` returns."""
    total = 0.0
    overlap = 0.0
    for k in range(now.shape[0]):
        value = label[k] + blank[k] + skip[k] * label_right[k]
        now[k] = value
        total += value
        overlap += value * alpha[k]
    return total, overlap


@njit(error_model="numpy", cache=True, fastmath=FAST)
def emit_blanks(beta: Float64, prob: float, emitted: Float64) -> None:
    """Beta of the blank states, the frame's own emission included."""
    for k in range(emitted.shape[0]):
        emitted[k] = beta[k] * prob


@njit(error_model="numpy", cache=True, fastmath=FAST)
def emit_labels(
    beta: Float64,
    alpha: Float64,
    probs: Float32,
    share: float,
    inverse: float,
    occupancy: Float32,
    emitted: Float64,
) -> None:
    """The occupancy of the label states, and beta with the frame's own emission included."""
    for k in range(emitted.shape[0]):
        occupancy[k] = alpha[k] * beta[k] * share
        emitted[k] = beta[k] * (probs[k] * inverse)
