"""CTC lattice of one utterance on the CPU: scaled probabilities, where they are exact.

The forward-backward recursion runs on probabilities in float64, over the states that can be
reached and can still reach the end. An utterance whose numbers leave the range in which that is
exact is refused, for `ctc_log` to decide. docs/maths.md section 5 has the criterion.
"""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from interkd.kernels._numba.ctc_rows import (
    add_and_min,
    alpha_blanks,
    alpha_labels,
    beta_blanks,
    beta_labels,
    clear_around,
    emit_blanks,
    emit_labels,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_SMALLEST_PROBABILITY = np.float32(1e-34)  # above float32's subnormal numbers
_SMALLEST_OVERLAP = 1e-250  # leaves 50 decades above what a flushed state can hide
_LOSS_AGREEMENT = 1e-7
_TILT_RANGE = (1e-6, 1e12)


@njit(error_model="numpy", cache=True)
def frames_needed(labels: Int64) -> int:
    """Fewest frames of an alignment: one a label, and a blank between two that are equal."""
    needed: int = labels.shape[0]
    for k in range(1, labels.shape[0]):
        needed += labels[k] == labels[k - 1]
    return needed


@njit(error_model="numpy", cache=True)
def _bands(labels: Int64, frames: int) -> Int64:
    """Per frame the half-open ranges of blanks and labels that lie on some complete path.

    Blank k stands before label k. Columns: first blank, end of blanks, first label, end of labels.
    """
    count = labels.shape[0]
    repeats = np.zeros(count + 1, np.int64)
    for k in range(1, count):
        repeats[k] = repeats[k - 1] + (labels[k] == labels[k - 1])
    total = repeats[count - 1] if count else 0
    bands = np.empty((frames, 4), np.int64)
    first_blank = end_blank = first_label = end_label = 0
    for t in range(frames):
        left = frames - 1 - t
        while first_blank < count and count - first_blank + total - repeats[first_blank] > left:
            first_blank += 1
        while first_label < count and count - 1 - first_label + total - repeats[first_label] > left:
            first_label += 1
        while end_label < count and end_label + repeats[end_label] <= t:
            end_label += 1
        while end_blank <= count and (end_blank == 0 or end_blank + repeats[end_blank - 1] <= t):
            end_blank += 1
        bands[t, 0] = first_blank
        bands[t, 1] = end_blank
        bands[t, 2] = first_label
        bands[t, 3] = end_label
    return bands


@njit(error_model="numpy", cache=True)
def scaled_lattice(
    blank_probs: Float32,
    label_probs: Float32,
    labels: Int64,
    occupancy: Float32,
    alpha: Float64,
) -> float:
    """Loss of one utterance; NaN where logarithms must decide.

    Args:
        blank_probs: `(T,)`, T at least the frames that the labels need.
        label_probs: `(T, U)`.
        labels: `(U,)`.
        occupancy: To fill, at least `(T, U + 1)`: of each label's state, then of all blank states.
        alpha: Scratch, at least `(2, (T + 1) (U + 1))`, with anything in it.
    """
    frames, count = label_probs.shape
    bands = _bands(labels, frames)
    label_mass = np.zeros(count, np.float64)
    blank_mass = 0.0
    smallest = np.float32(1.0)
    for t in range(frames):
        blank_mass += blank_probs[t]
        if bands[t, 0] < bands[t, 1]:
            smallest = min(smallest, blank_probs[t])
        lo, hi = bands[t, 2], bands[t, 3]
        smallest = add_and_min(label_probs[t, lo:hi], label_mass[lo:hi], smallest)
    if not smallest >= _SMALLEST_PROBABILITY or math.isnan(blank_mass):
        return np.nan

    # Entering label k is paid `enter[k]`, the same for every complete path. It moves the bulk of
    # alpha along with the transcript, which a model that says "blank" everywhere would outrun.
    enter = np.empty(count + 1, np.float64)
    skip = np.zeros(count + 1, np.float64)
    log_paid = 0.0
    for k in range(count):
        tilt = count * blank_mass / (frames * label_mass[k])
        enter[k] = min(max(tilt, _TILT_RANGE[0]), _TILT_RANGE[1])
        log_paid += math.log(enter[k])
        if k > 0 and labels[k] != labels[k - 1]:
            skip[k] = enter[k]
    enter[count] = 0.0

    # Row t + 1 is frame t, row 0 the start. Label k is in column k + 1; column 0 is no label.
    # Beyond a frame's band only its neighbours are read, so only they are zeroed.
    cells = (frames + 1) * (count + 1)
    alpha_blank = alpha[0, :cells].reshape((frames + 1, count + 1))
    alpha_label = alpha[1, :cells].reshape((frames + 1, count + 1))
    alpha_blank[0] = 0.0
    alpha_label[0] = 0.0
    sums = np.empty(frames, np.float64)
    alpha_blank[0, 0] = 1.0
    log_likelihood = -log_paid
    inverse = 1.0
    for t in range(frames):
        lo, hi = bands[t, 0], bands[t, 1]
        blanks, labels_before = alpha_blank[t], alpha_label[t]
        clear_around(alpha_blank[t + 1], lo, hi)
        clear_around(alpha_label[t + 1], bands[t, 2] + 1, bands[t, 3] + 1)
        total = alpha_blanks(
            alpha_blank[t + 1, lo:hi], blanks[lo:hi], labels_before[lo:hi], blank_probs[t] * inverse
        )
        lo, hi = bands[t, 2], bands[t, 3]
        total += alpha_labels(
            alpha_label[t + 1, lo + 1 : hi + 1],
            labels_before[lo + 1 : hi + 1],
            blanks[lo:hi],
            labels_before[lo:hi],
            enter[lo:hi],
            skip[lo:hi],
            label_probs[t, lo:hi],
            inverse,
        )
        sums[t] = total
        log_likelihood += math.log(total)
        inverse = 1.0 / total

    # Beta, last frame first. States beyond a frame's range keep old values that nothing reads.
    beta_blank = np.zeros(count + 1, np.float64)
    beta_label = np.zeros(count + 1, np.float64)
    next_blank = np.zeros(count + 2, np.float64)
    next_label = np.zeros(count + 2, np.float64)
    beta_blank[count] = 1.0
    beta_sum = 1.0
    in_blank = overlap = alpha_blank[frames, count]
    if count:
        beta_label[count - 1] = 1.0
        beta_sum = 2.0
        overlap += alpha_label[frames, count]
    log_beta = 0.0
    for t in range(frames - 1, -1, -1):
        if not overlap > _SMALLEST_OVERLAP * sums[t] * beta_sum:
            return np.nan
        inverse = 1.0 / beta_sum
        lo, hi = bands[t, 0], bands[t, 1]
        emit_blanks(beta_blank[lo:hi], blank_probs[t] * inverse, next_blank[lo:hi])
        lo, hi = bands[t, 2], bands[t, 3]
        row = occupancy[t]
        row[:lo] = 0.0
        row[hi:count] = 0.0
        row[count] = in_blank / overlap
        emit_labels(
            beta_label[lo:hi],
            alpha_label[t + 1, lo + 1 : hi + 1],
            label_probs[t, lo:hi],
            1.0 / overlap,
            inverse,
            row[lo:hi],
            next_label[lo:hi],
        )
        if t == 0:
            log_beta += math.log(overlap) - log_paid
            break
        log_beta += math.log(beta_sum)
        lo, hi = bands[t - 1, 0], bands[t - 1, 1]
        sum_blank, in_blank = beta_blanks(
            beta_blank[lo:hi],
            next_blank[lo:hi],
            next_label[lo:hi],
            enter[lo:hi],
            alpha_blank[t, lo:hi],
        )
        lo, hi = bands[t - 1, 2], bands[t - 1, 3]
        sum_label, in_label = beta_labels(
            beta_label[lo:hi],
            next_label[lo:hi],
            next_blank[lo + 1 : hi + 1],
            next_label[lo + 1 : hi + 1],
            skip[lo + 1 : hi + 1],
            alpha_label[t, lo + 1 : hi + 1],
        )
        beta_sum = sum_blank + sum_label
        overlap = in_blank + in_label
    if not abs(log_likelihood - log_beta) <= _LOSS_AGREEMENT * (1.0 + abs(log_beta)):
        return np.nan
    return -log_likelihood
