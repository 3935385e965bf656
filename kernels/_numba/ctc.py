"""CTC loss and gradient on the CPU: scaled probabilities first, logarithms where they fail.

Each utterance runs the forward-backward recursion on probabilities in float64, over the states
that can be reached and can still reach the end. An utterance whose numbers leave the range in
which that is exact is done again on logarithms. docs/maths.md section 5 has the criterion.
"""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from interkd.kernels._numba import float32_logits, launch
from interkd.kernels._numba.ctc_log import log_lattice
from interkd.kernels._numba.softmax import FAST, exp_row, row_max

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_SMALLEST_PROBABILITY = np.float32(1e-34)  # above float32's subnormal numbers
_SMALLEST_OVERLAP = 1e-250  # leaves 50 decades above what a flushed state can hide
_LOSS_AGREEMENT = 1e-7
_TILT_RANGE = (1e-6, 1e12)


def ctc_loss_and_gradient(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    blank_index: int,
) -> tuple[Tensor, Tensor]:
    """Loss float64 `(B,)` and its gradient on the logits, float32 `(B, T, V)`."""
    values = float32_logits(logits)
    loss = np.empty(len(values), np.float64)
    gradient = torch.empty(values.shape, dtype=torch.float32)
    launch(
        _kernel,
        values,
        targets.contiguous().numpy(),
        frame_lengths.contiguous().numpy(),
        target_lengths.contiguous().numpy(),
        blank_index,
        loss,
        gradient.numpy(),
    )
    return torch.from_numpy(loss), gradient


@njit(error_model="numpy", cache=True, nogil=True, parallel=True)
def _kernel(
    logits: Float32,
    targets: Int64,
    frame_lengths: Int64,
    target_lengths: Int64,
    blank: int,
    loss: Float64,
    gradient: Float32,
) -> None:
    for b in prange(logits.shape[0]):
        frames = frame_lengths[b]
        labels = targets[b, : target_lengths[b]]
        needed = labels.shape[0]
        for k in range(1, labels.shape[0]):
            needed += labels[k] == labels[k - 1]
        gradient[b, frames:] = 0.0
        if needed > frames:
            loss[b] = np.inf
            gradient[b, :frames] = 0.0
        elif frames == 0:
            loss[b] = 0.0
        else:
            value = _scaled_lattice(logits[b], labels, frames, blank, gradient[b])
            if math.isnan(value):
                value = log_lattice(logits[b], labels, frames, blank, gradient[b])
            loss[b] = value


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


@njit(error_model="numpy", cache=True, fastmath=FAST)
def _scaled_lattice(
    logits: Float32, labels: Int64, frames: int, blank: int, gradient: Float32
) -> float:
    """Loss of one utterance, its gradient in `gradient`; NaN where logarithms must decide."""
    count = labels.shape[0]
    bands = _bands(labels, frames)
    blank_probs = np.empty(frames, np.float64)
    label_probs = np.empty((frames, count), np.float32)
    label_mass = np.zeros(count, np.float64)
    smallest = np.float32(1.0)
    for t in range(frames):
        row = gradient[t]
        total = exp_row(logits[t], row_max(logits[t]), np.float32(1.0), row)
        scale = np.float32(1.0 / total)
        for v in range(row.shape[0]):
            row[v] *= scale
        blank_probs[t] = row[blank]
        if bands[t, 0] < bands[t, 1]:
            smallest = min(smallest, row[blank])
        for k in range(bands[t, 2], bands[t, 3]):
            p = row[labels[k]]
            label_probs[t, k] = p
            label_mass[k] += p
            smallest = min(smallest, p)
        if math.isnan(total):
            return np.nan
    if smallest < _SMALLEST_PROBABILITY:
        return np.nan

    # Entering label k is paid `enter[k]`, the same for every complete path. It moves the bulk of
    # alpha along with the transcript, which a model that says "blank" everywhere would outrun.
    enter = np.empty(count + 1, np.float64)
    skip = np.zeros(count + 1, np.float64)
    log_paid = 0.0
    blank_mass = blank_probs.sum()
    for k in range(count):
        tilt = count * blank_mass / (frames * label_mass[k])
        enter[k] = min(max(tilt, _TILT_RANGE[0]), _TILT_RANGE[1])
        log_paid += math.log(enter[k])
        if k > 0 and labels[k] != labels[k - 1]:
            skip[k] = enter[k]
    enter[count] = 0.0

    # Row t + 1 is frame t, row 0 the start. Label k is in column k + 1; column 0 is no label.
    alpha_blank = np.zeros((frames + 1, count + 1), np.float64)
    alpha_label = np.zeros((frames + 1, count + 1), np.float64)
    sums = np.empty(frames, np.float64)
    alpha_blank[0, 0] = 1.0
    log_likelihood = -log_paid
    inverse = 1.0
    for t in range(frames):
        before_blank = alpha_blank[t]
        before_label = alpha_label[t]
        now_blank = alpha_blank[t + 1]
        now_label = alpha_label[t + 1]
        probs = label_probs[t]
        total = 0.0
        p_blank = blank_probs[t] * inverse
        for k in range(bands[t, 0], bands[t, 1]):
            value = (before_blank[k] + before_label[k]) * p_blank
            now_blank[k] = value
            total += value
        for k in range(bands[t, 2], bands[t, 3]):
            value = before_label[k + 1] + enter[k] * before_blank[k] + skip[k] * before_label[k]
            value *= probs[k] * inverse
            now_label[k + 1] = value
            total += value
        sums[t] = total
        log_likelihood += math.log(total)
        inverse = 1.0 / total

    # Beta, last frame first. States beyond a frame's range keep old values that nothing reads.
    beta_blank = np.zeros(count + 1, np.float64)
    beta_label = np.zeros(count + 1, np.float64)
    next_blank = np.zeros(count + 2, np.float64)
    next_label = np.zeros(count + 2, np.float64)
    beta_blank[count] = 1.0
    if count:
        beta_label[count - 1] = 1.0
    beta_sum = 2.0 if count else 1.0
    log_beta = 0.0
    for t in range(frames - 1, -1, -1):
        now_blank = alpha_blank[t + 1]
        now_label = alpha_label[t + 1]
        probs = label_probs[t]
        first_blank, end_blank = bands[t, 0], bands[t, 1]
        first_label, end_label = bands[t, 2], bands[t, 3]
        in_blank = 0.0
        for k in range(first_blank, end_blank):
            in_blank += now_blank[k] * beta_blank[k]
        in_label = 0.0
        for k in range(first_label, end_label):
            in_label += now_label[k + 1] * beta_label[k]
        overlap = in_blank + in_label
        if not overlap > _SMALLEST_OVERLAP * sums[t] * beta_sum:
            return np.nan
        row = gradient[t]
        row[blank] -= np.float32(in_blank / overlap)
        share = 1.0 / overlap
        for k in range(first_label, end_label):
            row[labels[k]] -= np.float32(now_label[k + 1] * beta_label[k] * share)
        if t == 0:
            log_beta += math.log(overlap) - log_paid
            break
        log_beta += math.log(beta_sum)
        inverse = 1.0 / beta_sum
        p_blank = blank_probs[t] * inverse
        for k in range(first_blank, end_blank):
            next_blank[k] = beta_blank[k] * p_blank
        for k in range(first_label, end_label):
            next_label[k] = beta_label[k] * (probs[k] * inverse)
        beta_sum = 0.0
        for k in range(bands[t - 1, 0], bands[t - 1, 1]):
            value = next_blank[k] + enter[k] * next_label[k]
            beta_blank[k] = value
            beta_sum += value
        for k in range(bands[t - 1, 2], bands[t - 1, 3]):
            value = next_label[k] + next_blank[k + 1] + skip[k + 1] * next_label[k + 1]
            beta_label[k] = value
            beta_sum += value
    if not abs(log_likelihood - log_beta) <= _LOSS_AGREEMENT * (1.0 + abs(log_beta)):
        return np.nan
    return -log_likelihood
