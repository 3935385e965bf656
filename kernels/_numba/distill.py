"""Sparse divergence and its gradient on the CPU: one read of the logits, one write of the gradient.

Everything as wide as the vocabulary is float32; the few classes of a frame are float64.
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
from interkd.kernels._numba.distill_uniform import tail_mass, uniform_frame
from interkd.kernels._numba.softmax import exp_row, row_max, scale_row, sum_row
from interkd.kernels.sparse import SparsePosteriors

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

_SMALLEST_TAIL = 1e-25  # of the frame's largest exponential; float32 still has 12 decades below


def divergence_and_gradient(
    logits: Tensor,
    teacher: SparsePosteriors,
    frame_lengths: Tensor,
    selected: Tensor,
    divergence: str,
    tail: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Loss float64 `(B,)` and its gradient on the logits, float32 `(B, T, V)`."""
    values = float32_logits(logits)
    loss = torch.empty(values.shape[:2], dtype=torch.float64)
    gradient = torch.empty(values.shape, dtype=torch.float32)
    launch(
        _kernel,
        values,
        frame_lengths.contiguous().numpy(),
        teacher.frame_offsets.contiguous().numpy(),
        teacher.entry_offsets.contiguous().numpy(),
        teacher.tokens.contiguous().numpy(),
        teacher.log_probs.contiguous().numpy(),
        selected.contiguous().numpy(),
        divergence == "l2",
        tail == "uniform",
        tail == "bucket",
        float(temperature),
        loss.numpy(),
        gradient.numpy(),
    )
    return loss.sum(1), gradient


@njit(error_model="numpy", cache=True, nogil=True, parallel=True)
def _kernel(
    logits: Float32,
    frame_lengths: Int64,
    frame_offsets: Int64,
    entry_offsets: Int64,
    tokens: Int32,
    log_probs: Float32,
    selected: NDArray[np.bool_],
    squared: bool,
    uniform: bool,
    bucket: bool,
    temperature: float,
    loss: Float64,
    gradient: Float32,
) -> None:
    frames = logits.shape[1]
    for i in prange(logits.shape[0] * frames):
        b = i // frames
        t = i % frames
        n = frame_offsets[b] + t
        if t < frame_lengths[b] and selected[n]:
            first, end = entry_offsets[n], entry_offsets[n + 1]
            if uniform:
                loss[b, t] = uniform_frame(
                    logits[b, t],
                    tokens[first:end],
                    log_probs[first:end],
                    squared,
                    temperature,
                    gradient[b, t],
                )
            else:
                loss[b, t] = _class_frame(
                    logits[b, t],
                    tokens[first:end],
                    log_probs[first:end],
                    squared,
                    bucket,
                    temperature,
                    gradient[b, t],
                )
        else:
            loss[b, t] = 0.0
            gradient[b, t] = 0.0


@njit(error_model="numpy", cache=True)
def _log_softmax(scores: Float64) -> None:
    """In place."""
    peak = scores.max()
    total = 0.0
    for c in range(scores.shape[0]):
        total += math.exp(scores[c] - peak)
    log_total = math.log(total)
    for c in range(scores.shape[0]):
        scores[c] = (scores[c] - peak) - log_total


@njit(error_model="numpy", cache=True)
def _tail_exponentials(row: Float32, tokens: Int32, out: Float32) -> tuple[float, float]:
    """Exponentials of the tokens not kept in `out`, 0 for the kept; their shift and their sum."""
    peak = row_max(row)
    exp_row(row, peak, np.float32(1.0), out)
    for j in range(tokens.shape[0]):
        out[tokens[j]] = 0.0
    total = sum_row(out)
    if total < _SMALLEST_TAIL:  # nothing left beside the kept tokens: shift by the tail's own peak
        for j in range(tokens.shape[0]):
            out[tokens[j]] = np.nan
        peak = np.float32(-np.inf)
        for v in range(row.shape[0]):
            if not math.isnan(out[v]) and row[v] > peak:
                peak = row[v]
        total = 0.0
        for v in range(row.shape[0]):
            if math.isnan(out[v]) or row[v] == -np.inf:
                out[v] = 0.0
            else:
                out[v] = math.exp(np.float64(row[v]) - np.float64(peak))
                total += out[v]
    return np.float64(peak), total


@njit(error_model="numpy", cache=True)
def _class_frame(
    row: Float32,
    tokens: Int32,
    log_probs: Float32,
    squared: bool,
    bucket: bool,
    temperature: float,
    out: Float32,
) -> float:
    """Frame whose classes are the kept tokens and, for `bucket`, one for all others."""
    kept = tokens.shape[0]
    with_tail = bucket and kept < row.shape[0]
    count = kept + 1 if with_tail else kept
    teacher = np.empty(count, np.float64)
    student = np.empty(count, np.float64)
    for j in range(kept):
        teacher[j] = log_probs[j]
        student[j] = row[tokens[j]]
    total = 0.0
    if with_tail:
        mass = tail_mass(log_probs)
        teacher[kept] = math.log(mass) if mass > 0 else -np.inf
        peak, total = _tail_exponentials(row, tokens, out)
        student[kept] = peak + math.log(total) if total > 0 or math.isnan(total) else -np.inf
    else:
        out[:] = 0.0
    if count == 0 or teacher.max() == -np.inf:
        out[:] = 0.0
        return 0.0
    for c in range(count):
        teacher[c] /= temperature
        student[c] /= temperature
    _log_softmax(teacher)
    _log_softmax(student)

    loss = 0.0
    weighted = 0.0
    for c in range(count):
        p, q = math.exp(teacher[c]), math.exp(student[c])
        if squared:
            loss += (p - q) ** 2
            weighted += q * (q - p)
        elif p > 0:
            loss += p * (teacher[c] - student[c])
    for c in range(count):
        p, q = math.exp(teacher[c]), math.exp(student[c])
        slope = 2.0 * q * ((q - p) - weighted) if squared else q - p
        slope /= temperature
        if c < kept:
            teacher[c] = slope
        else:
            scale_row(out, np.float32(slope / total if total != 0 else 0.0))
    for j in range(kept):
        out[tokens[j]] = teacher[j]
    return loss
