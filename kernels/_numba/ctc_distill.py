"""The fused loss on the CPU: one read of the logits for the losses, one for the gradient.

The forward pass keeps, beside each frame's softmax normaliser, only what is as narrow as the
transcript (occupancies) or the teacher's entries (slopes); the gradient pass rebuilds the rest.
"""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from interkd.kernels._numba import addresses, array_at, float32_logits, launch
from interkd.kernels._numba.ctc import frames_needed, scaled_lattice
from interkd.kernels._numba.ctc_log import log_lattice
from interkd.kernels._numba.distill import class_frame
from interkd.kernels._numba.distill_uniform import uniform_frame
from interkd.kernels._numba.softmax import (
    add_exp_row,
    add_uniform_slopes,
    exp_float32,
    exp_row,
    row_max,
    scaled_exp_row,
)
from interkd.kernels._numba.teacher import BUCKET, RENORMALISE, UNIFORM, soften_teacher
from interkd.kernels.autograd import Losses
from interkd.kernels.problem import Distillation, Problem, Transcripts
from interkd.kernels.weighting import term_scales, weighted

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


def losses(
    logits: tuple[Tensor, ...], problem: Problem, with_gradient: bool
) -> tuple[Losses, tuple[Tensor, ...]]:
    """The losses, and what `gradients` needs beside the logits."""
    heads, (batch, frames, vocab_size) = len(logits), logits[0].shape
    values = [float32_logits(head) for head in logits]
    width, entries = _widths(problem)
    state = (
        torch.empty(heads, batch, frames, 2),
        torch.empty(heads, batch, frames, width),
        torch.empty(heads, batch, frames if problem.distillation else 0, 4),
        torch.empty(heads, entries),
    )
    loss = torch.zeros(2, heads, batch, dtype=torch.float64)
    launch(
        _losses,
        min(torch.get_num_threads(), max(heads * batch, 1)),
        addresses(values),
        (batch, frames, vocab_size),
        _transcripts(problem.transcripts, batch, heads),
        _distillation(problem.distillation, batch, heads),
        _teacher(problem.distillation, vocab_size),
        loss.numpy(),
        tuple(column.numpy() for column in state),
    )
    result = weighted(loss[0], loss[1], problem)
    return result, (result.ctc, result.distill, *state) if with_gradient else ()


def gradients(
    logits: tuple[Tensor, ...],
    problem: Problem,
    state: tuple[Tensor, ...],
    upstream: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    """Writes the gradient to `out`."""
    heads, (batch, frames, vocab_size) = len(logits), logits[0].shape
    values = [float32_logits(head) for head in logits]
    ctc, distill, *parts = state
    # Scaled before the cast, so that a float16 loss scale reaches float16's range.
    wide = [t if t.dtype == torch.float32 else torch.empty(t.shape) for t in out]
    launch(
        _gradients,
        addresses(values),
        addresses([tensor.numpy() for tensor in wide]),
        (batch, frames, vocab_size),
        _transcripts(problem.transcripts, batch, heads),
        _distillation(problem.distillation, batch, heads),
        term_scales(problem, ctc, distill, upstream).numpy(),
        tuple(column.numpy() for column in parts),
    )
    for target, tensor in zip(out, wide, strict=True):
        if target is not tensor:
            target.copy_(tensor)


def _widths(problem: Problem) -> tuple[int, int]:
    """Columns of the occupancies (labels and the blank) and entries of the teacher."""
    half, kd = problem.transcripts, problem.distillation
    return half.targets.shape[1] + 1 if half else 0, len(kd.teacher.tokens) if kd else 0


def _asked(heads: tuple[int, ...], count: int) -> Bool:
    flags = np.zeros(count, np.bool_)
    flags[list(heads)] = True
    return flags


def _transcripts(half: Transcripts | None, batch: int, heads: int) -> tuple[object, ...]:
    """Arrays of one type whether the half is asked for or not: one compiled kernel serves both."""
    if half is None:
        none = np.zeros(batch, np.int64)
        return _asked((), heads), np.zeros((batch, 0), np.int64), none, none, 0
    return (
        _asked(half.heads, heads),
        half.targets.numpy(),
        half.frame_lengths.numpy(),
        half.target_lengths.numpy(),
        half.blank_index,
    )


def _distillation(kd: Distillation | None, batch: int, heads: int) -> tuple[object, ...]:
    if kd is None:
        offsets = np.zeros(batch + 1, np.int64)
        return (
            *(_asked((), heads), offsets[:-1], offsets, offsets, np.zeros(0, np.int32)),
            *(np.zeros(0, np.bool_), False, False, False, 1.0, 0),
        )
    offsets = kd.teacher.entry_offsets.numpy()
    return (
        _asked(kd.heads, heads),
        kd.compared_lengths.numpy(),
        kd.teacher.frame_offsets.numpy(),
        offsets,
        kd.teacher.tokens.numpy(),
        np.zeros(0, np.bool_) if kd.selected is None else kd.selected.numpy(),
        kd.divergence == "l2",
        kd.tail == "uniform",
        kd.tail == "bucket",
        kd.temperature,
        int((offsets[1:] - offsets[:-1]).max(initial=0)),
    )


def _teacher(kd: Distillation | None, vocab_size: int) -> tuple[Float64, Float64]:
    """The teacher's class probabilities, for all heads; see `soften_teacher`."""
    if kd is None:
        return np.empty((2, 0)), np.empty((2, 0))
    offsets = kd.teacher.entry_offsets.numpy()
    probs = np.empty((2, len(kd.teacher.tokens)))
    rests = np.empty((2, len(offsets) - 1))
    launch(
        soften_teacher,
        offsets,
        kd.teacher.log_probs.numpy(),
        vocab_size,
        {"bucket": BUCKET, "uniform": UNIFORM, "renormalise": RENORMALISE}[kd.tail],
        kd.temperature,
        probs,
        rests,
    )
    return probs, rests


# The bodies of the parallel loops are functions of their own: numba would make parallel loops of
# the assignments to slices within them, and gets those wrong here.
@njit(error_model="numpy", cache=True, nogil=True, parallel=True)
def _losses(workers, logits_at, shape, transcripts, distillation, teacher, losses, state):  # type: ignore[no-untyped-def]
    for worker in prange(workers):
        half, kd = transcripts, distillation
        _some_losses(worker, workers, logits_at, shape, half, kd, teacher, losses, state)


@njit(error_model="numpy", cache=True)
def _some_losses(worker, workers, logits_at, shape, half, kd, teacher, losses, state):  # type: ignore[no-untyped-def]
    """Every `workers`-th utterance, in scratch arrays that one thread needs once."""
    batch, frames, vocab_size = shape
    width = half[1].shape[1] if half[0].any() else 0
    lattice_frames = frames if half[0].any() else 0
    scratch = (
        np.empty(lattice_frames, np.float32),
        np.empty(lattice_frames * width, np.float32),
        np.empty((2, (lattice_frames + 1) * (width + 1)), np.float64),
        np.empty(vocab_size, np.float32),
        np.empty((2, kd[-1] + 1), np.float64),
    )
    for i in range(worker, logits_at.shape[0] * batch, workers):
        logits = array_at(logits_at[i // batch], shape)
        _utterance(logits, i // batch, i % batch, half, kd, teacher, losses, state, scratch)


@njit(error_model="numpy", cache=True, nogil=True, parallel=True)
def _gradients(logits_at, out_at, shape, transcripts, distillation, scales, state):  # type: ignore[no-untyped-def]
    batch = shape[0]
    for i in prange(logits_at.shape[0] * batch):
        logits = array_at(logits_at[i // batch], shape)
        out = array_at(out_at[i // batch], shape)
        _gradient(logits, i // batch, i % batch, transcripts, distillation, scales, state, out)


@njit(error_model="numpy", cache=True)
def _utterance(logits, h, b, transcripts, distillation, teacher, losses, state, scratch):  # type: ignore[no-untyped-def]
    """Both losses of one head's utterance, and its part of the state."""
    ctc_asked, targets, frame_lengths, target_lengths, blank = transcripts
    kd_asked, compared, frame_offsets, entry_offsets, tokens = distillation[:5]
    selected, squared, uniform, bucket, temperature, _ = distillation[5:]
    probs, rests = teacher
    normalisers, occupancies, kd_frames, slopes = state
    labels = targets[b, : target_lengths[b]]
    count = labels.shape[0]
    ctc_frames = frame_lengths[b] if ctc_asked[h] else 0
    kd_length = compared[b] if kd_asked[h] else 0
    all_blank_probs, all_label_probs, alpha, exponentials, classes = scratch
    blank_probs = all_blank_probs[:ctc_frames]
    # Reshaped, not sliced: loops over rows that the compiler knows to be contiguous are vectors.
    label_probs = all_label_probs[: ctc_frames * count].reshape((ctc_frames, count))
    divergence = 0.0
    for t in range(max(ctc_frames, kd_length)):
        n = frame_offsets[b] + t
        compare = t < kd_length and (selected.shape[0] == 0 or selected[n])
        if t >= ctc_frames and not compare:
            continue
        row = logits[b, t]
        peak = row_max(row)
        total = exp_row(row, peak, np.float32(1.0), exponentials)
        scale = np.float32(1.0 / total)
        normalisers[h, b, t, 0] = peak
        normalisers[h, b, t, 1] = scale
        if t < ctc_frames:
            # A sum that is no number must reach the loss, whatever the transcript reads.
            blank_probs[t] = exponentials[blank] * scale if total > 0 else np.nan
            for k in range(count):
                label_probs[t, k] = exponentials[labels[k]] * scale
        if compare:
            first, end = entry_offsets[n], entry_offsets[n + 1]
            rest = rests[0, n], rests[1, n]
            if uniform:
                divergence += uniform_frame(
                    *(row, exponentials, peak, tokens, first, end, probs, *rest),
                    *(squared, temperature, slopes[h], kd_frames[h, b, t]),
                )
            else:
                divergence += class_frame(
                    *(row, exponentials, peak, tokens, first, end, probs, *rest),
                    *(squared, bucket, temperature, classes, slopes[h], kd_frames[h, b, t]),
                )
    losses[1, h, b] = divergence
    if not ctc_asked[h]:
        losses[0, h, b] = 0.0
    elif frames_needed(labels) > ctc_frames:
        losses[0, h, b] = np.inf
    elif ctc_frames == 0:
        losses[0, h, b] = 0.0
    else:
        occupancy = occupancies[h, b]
        loss = scaled_lattice(blank_probs, label_probs, labels, occupancy, alpha)
        if math.isnan(loss):
            loss = log_lattice(logits[b, :ctc_frames], labels, blank, occupancy)
        losses[0, h, b] = loss


@njit(error_model="numpy", cache=True)
def _gradient(logits, h, b, transcripts, distillation, scales, state, out):  # type: ignore[no-untyped-def]
    """The gradient of one head's utterance, `(T, V)`."""
    ctc_asked, targets, frame_lengths, target_lengths, blank = transcripts
    kd_asked, compared, frame_offsets, entry_offsets, tokens = distillation[:5]
    selected, squared, uniform, _, temperature, _ = distillation[5:]
    normalisers, occupancies, kd_frames, slopes = state
    ctc_scale, kd_scale = scales[0, h, b], scales[1, h, b]
    ctc_length = frame_lengths[b] if ctc_asked[h] and ctc_scale != 0 else 0
    kd_length = compared[b] if kd_asked[h] and kd_scale != 0 else 0
    labels = targets[b, : target_lengths[b]]
    for t in range(logits.shape[1]):
        n = frame_offsets[b] + t
        compare = t < kd_length and (selected.shape[0] == 0 or selected[n])
        row, gradient = logits[b, t], out[b, t]
        peak = normalisers[h, b, t, 0]
        factor = ctc_scale * normalisers[h, b, t, 1] if t < ctc_length else np.float32(0.0)
        if compare:
            first, end = entry_offsets[n], entry_offsets[n + 1]
            shift, tail, each, weighted = kd_frames[h, b, t]
            if not uniform and shift == peak:
                scaled_exp_row(row, peak, factor + kd_scale * tail, gradient)
            elif t < ctc_length:
                scaled_exp_row(row, peak, factor, gradient)
            else:
                gradient[:] = 0.0
            if uniform and not math.isnan(each):
                add_uniform_slopes(
                    row, shift, tail, each, weighted, temperature, kd_scale, squared, gradient
                )
            elif not uniform and shift != peak and tail != 0:
                add_exp_row(row, shift, kd_scale * tail, gradient)
            for j in range(first, end):
                token = tokens[j]
                value = kd_scale * slopes[h, j]
                if t < ctc_length:
                    value += factor * exp_float32(row[token] - peak)
                gradient[token] = value
        elif t < ctc_length:
            scaled_exp_row(row, peak, factor, gradient)
        else:
            gradient[:] = 0.0
        if t < ctc_length:
            occupancy = occupancies[h, b, t]
            gradient[blank] -= ctc_scale * occupancy[labels.shape[0]]
            for k in range(labels.shape[0]):
                gradient[labels[k]] -= ctc_scale * occupancy[k]
