"""Softmax, divergence and label logits of a frame on a GPU: one program a frame of a head.

A frame wider than a block is read block by block.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803, SIM102

from __future__ import annotations

import triton
import triton.language as tl

from interkd.kernels._triton.prepare import BUCKET, RENORMALISE, UNIFORM, finite_or_zero
from interkd.kernels._triton.rows import of_head, rest_below_its_peak, row_sums
from interkd.kernels._triton.scaled import probability

_FEW = tl.constexpr(4)  # kept tokens that are struck out one by one
_SMALLEST_SUM = tl.constexpr(1e-25)  # of exponentials below the frame's largest logit


@triton.jit
def _kept_tokens(z, tokens, probs, entries, start, end, BLOCK_K: tl.constexpr):
    """Some of a frame's kept tokens: which there are, the teacher's p and log p, their logits."""
    place = start + tl.arange(0, BLOCK_K)
    there = place < end
    token = tl.load(tokens + place, mask=there, other=0)
    p = tl.load(probs + place, mask=there, other=0.0)
    log_p = tl.load(probs + entries + place, mask=there, other=0.0)
    value = tl.load(z + token, mask=there, other=-float("inf")).to(tl.float32)
    return there, p, log_p, value


@triton.jit
def _exponentials(kept, top, inverse_tau):
    there, _, _, value = kept
    return tl.where(there, tl.exp((value - top) * inverse_tau), 0.0)


@triton.jit
def _kept_terms(kept, top, inverse_tau, log_total, SQUARED: tl.constexpr):
    """Their q; the terms of the divergence; of l2, the terms of `sum q (q - p)`."""
    there, p, log_p, value = kept
    log_q = (value - top) * inverse_tau - log_total
    q = tl.where(there, tl.exp(log_q), 0.0)
    if SQUARED:
        return q, (q - p) * (q - p), q * (q - p)
    return q, tl.where(there & (p > 0.0), p * (log_p - log_q), 0.0), q


@triton.jit
def _store_slopes(
    place,
    kept,
    top,
    inverse_tau,
    log_total,
    weighted,
    massless,
    SQUARED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    there, p, _, value = kept
    q = tl.exp((value - top) * inverse_tau - log_total)
    slope = (q - p) * inverse_tau
    if SQUARED:
        slope = 2.0 * q * ((q - p) - weighted) * inverse_tau
    tl.store(place + tl.arange(0, BLOCK_K), tl.where(massless, 0.0, slope), mask=there)


@triton.jit(do_not_specialize=["batch", "T", "width", "teacher_length", "entries"])
def frame_losses(
    logits,
    offset1: tl.int64,
    offset2: tl.int64,
    offset3: tl.int64,
    targets,
    frame_lengths,
    target_lengths,
    compared_lengths,
    frame_offsets,
    entry_offsets,
    tokens,
    selected,
    probs,
    rests,
    frames,
    label_logits,
    occupancy,
    teacher_frames,
    slopes,
    divergence,
    batch,
    T,
    vocab_size,
    width,
    teacher_length,
    entries,
    blank,
    temperature,
    first_head,
    ctc_heads,
    distilled_heads,
    CTC: tl.constexpr,
    DISTILL: tl.constexpr,
    SELECTED: tl.constexpr,
    SQUARED: tl.constexpr,
    TAIL: tl.constexpr,
    TAU: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Frame t of utterance b under head h: all that losses and gradient need of the logits.

    Args:
        logits: The first of up to four heads, `(B, T, V)` contiguous.
        offset1: Elements from it to the second head.
        offset2: To the third.
        offset3: To the fourth.
        targets: int64 `(B, U)`.
        frame_lengths: int64 `(B,)`.
        target_lengths: int64 `(B,)`.
        compared_lengths: int64 `(B,)`.
        frame_offsets: The teacher's, int64 `(B + 1,)`.
        entry_offsets: The teacher's, int64 `(N + 1,)`.
        tokens: The teacher's, int32 `(E,)`.
        selected: bool `(N,)`, read if SELECTED.
        probs: The teacher's, see `prepare`.
        rests: The teacher's, see `prepare`.
        frames: To fill: peak, inverse total and the blank's probability, float32 `(H, B, T, 4)`.
        label_logits: To fill, float32 `(H, B, T, U)`.
        occupancy: To fill with zeros, int32 `(H, B, T, U)`.
        teacher_frames: To fill: shift, factor, each, weighted, float32 `(H, B, T, 4)`; see
            `frame_gradients`.
        slopes: To fill: gradient of the divergence on each kept logit, float32 `(H, E)`.
        divergence: To fill, float32 `(H, B, T)`.
        batch: B.
        T: Frames.
        vocab_size: V.
        width: U.
        teacher_length: N.
        entries: E.
        blank: Index of the blank.
        temperature: Above 0.
        first_head: Index of the first of these heads.
        ctc_heads: Bit h is set for a head with a CTC loss.
        distilled_heads: Likewise for a divergence.
        CTC: Whether any head has a CTC loss.
        DISTILL: Whether any head has a divergence.
        SELECTED: Whether frames are selected.
        SQUARED: l2 instead of kl.
        TAIL: BUCKET, UNIFORM or RENORMALISE.
        TAU: Whether the temperature is not 1.
        WITH_GRADIENT: Whether a gradient will be asked for.
        ALIGNED: Whether the offsets are multiples of 16.
        ONE_BLOCK: Whether BLOCK holds V.
        BLOCK: Tokens at once.
        BLOCK_U: A power of two, at least U.
        BLOCK_K: Kept tokens at once.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    h = tl.program_id(2)
    z = of_head(logits, h, offset1, offset2, offset3, ALIGNED)
    z += (b * T + t) * vocab_size
    h += first_head
    row = (h * batch + b) * T + t
    in_ctc = False
    if CTC:
        in_ctc = (t < tl.load(frame_lengths + b)) & ((ctc_heads >> h) & 1 == 1)
    compared = False
    first = 0
    end = 0
    n = b
    if DISTILL:
        tl.store(divergence + row, 0.0)
        compared = (t < tl.load(compared_lengths + b)) & ((distilled_heads >> h) & 1 == 1)
        n = tl.load(frame_offsets + b) + t
        if SELECTED:
            compared = compared & (tl.load(selected + n, mask=compared, other=0) != 0)
        first = tl.load(entry_offsets + n, mask=compared, other=0).to(tl.int32)
        end = tl.load(entry_offsets + n + 1, mask=compared, other=0).to(tl.int32)
    if in_ctc | compared:
        inverse_tau = 1.0 / temperature
        struck = end
        if DISTILL:
            # Asked for before the row is worked on, which takes as long as the answer.
            p_rest = tl.load(rests + n, mask=compared, other=-1.0)
            log_p_rest = tl.load(rests + teacher_length + n, mask=compared, other=0.0)
            kept = _kept_tokens(z, tokens, probs, entries, first, end, BLOCK_K)
        if TAIL == BUCKET:
            # Striking out many tokens takes longer than taking their sum off the total.
            struck = tl.where(end - first > _FEW, first, end)
        peak, total, total_rest, soft_rest, squares_rest, distance_rest = row_sums(
            z,
            tokens,
            first,
            struck,
            vocab_size,
            inverse_tau,
            DISTILL,
            TAIL,
            TAU,
            ONE_BLOCK,
            BLOCK,
        )
        tl.store(frames + row * 4, peak)
        tl.store(frames + row * 4 + 1, 1.0 / total)
        if CTC:
            if in_ctc:
                value = tl.load(z + blank).to(tl.float32)
                blank_m, blank_e = probability(value, peak, 1.0 / total)
                tl.store(frames + row * 4 + 2, blank_m)
                tl.store(frames + row * 4 + 3, blank_e)
                u = tl.arange(0, BLOCK_U)
                valid = u < tl.load(target_lengths + b)
                label = tl.load(targets + b * width + u, mask=valid, other=0)
                value = tl.load(z + label, mask=valid, other=0.0).to(tl.float32)
                tl.store(label_logits + row * width + u, value, mask=valid)
                if WITH_GRADIENT:
                    zero = tl.zeros([BLOCK_U], tl.int32)
                    tl.store(occupancy + row * width + u, zero, mask=u < width)
        if DISTILL:
            if compared:
                rest = vocab_size - (end - first)
                massless = p_rest < 0.0
                shift = finite_or_zero(peak)
                top = shift
                log_rest = -float("inf")
                if TAIL == RENORMALISE:
                    top = tl.max(kept[3], 0)
                    for j in range(first + BLOCK_K, end, BLOCK_K):
                        more = _kept_tokens(z, tokens, probs, entries, j, end, BLOCK_K)
                        top = tl.maximum(top, tl.max(more[3], 0))
                if TAIL == BUCKET:
                    if struck < end:
                        e = _exponentials(kept, top, 1.0)
                        for j in range(first + BLOCK_K, end, BLOCK_K):
                            more = _kept_tokens(z, tokens, probs, entries, j, end, BLOCK_K)
                            e += _exponentials(more, top, 1.0)
                        total_rest = total - tl.sum(e, 0)
                        # What is left of a difference must still have its digits.
                        total_rest = tl.where(total_rest < total * 0.00390625, 0.0, total_rest)
                    if (total_rest < _SMALLEST_SUM) & (rest > 0):
                        shift, total_rest = rest_below_its_peak(
                            z, tokens, first, end, vocab_size, BLOCK
                        )
                        shift = finite_or_zero(shift)
                    # A tail of no mass, unlike one of no number, has no logarithm.
                    log_rest = tl.log(total_rest)
                    log_rest = tl.where((total_rest == 0.0) | (rest == 0), -float("inf"), log_rest)
                    if TAU:
                        # At a high temperature the tail's score may exceed every token's.
                        top = tl.maximum(top, shift + log_rest)
                # Of the scores themselves only differences: large ones have few digits left.
                tail_below = (shift - top) + log_rest
                q_total = total
                if TAU or TAIL != BUCKET:
                    e = _exponentials(kept, top, inverse_tau)
                    for j in range(first + BLOCK_K, end, BLOCK_K):
                        more = _kept_tokens(z, tokens, probs, entries, j, end, BLOCK_K)
                        e += _exponentials(more, top, inverse_tau)
                    q_total = tl.sum(e, 0)
                    if TAIL == BUCKET:
                        q_total += tl.exp(tail_below * inverse_tau)
                    if TAIL == UNIFORM:
                        q_total += soft_rest
                log_total = tl.log(q_total)

                _, terms, weights = _kept_terms(kept, top, inverse_tau, log_total, SQUARED)
                for j in range(first + BLOCK_K, end, BLOCK_K):
                    more = _kept_tokens(z, tokens, probs, entries, j, end, BLOCK_K)
                    _, more_terms, more_weights = _kept_terms(
                        more, top, inverse_tau, log_total, SQUARED
                    )
                    terms += more_terms
                    weights += more_weights
                loss = tl.sum(terms, 0)
                weighted = 0.0
                if SQUARED:
                    weighted = tl.sum(weights, 0)
                q_rest = 0.0
                if TAIL == BUCKET:
                    log_q_rest = tail_below * inverse_tau - log_total
                    q_rest = tl.exp(log_q_rest)
                    if SQUARED:
                        loss += (q_rest - p_rest) * (q_rest - p_rest)
                        weighted += q_rest * (q_rest - p_rest)
                    else:
                        loss += tl.where(p_rest > 0.0, p_rest * (log_p_rest - log_q_rest), 0.0)
                if TAIL == UNIFORM:
                    if SQUARED:
                        q1 = soft_rest / q_total
                        q2 = squares_rest / q_total / q_total
                        loss += q2 - 2.0 * p_rest * q1 + rest * p_rest * p_rest
                        weighted += q2 - p_rest * q1
                    else:
                        cross = rest * (log_p_rest + log_total) - distance_rest * inverse_tau
                        loss += tl.where((p_rest > 0.0) & (rest > 0), p_rest * cross, 0.0)
                tl.store(divergence + row, tl.where(massless, 0.0, loss))
                if WITH_GRADIENT:
                    place = slopes + h.to(tl.int64) * entries
                    _store_slopes(
                        place + first,
                        kept,
                        top,
                        inverse_tau,
                        log_total,
                        weighted,
                        massless,
                        SQUARED,
                        BLOCK_K,
                    )
                    for j in range(first + BLOCK_K, end, BLOCK_K):
                        more = _kept_tokens(z, tokens, probs, entries, j, end, BLOCK_K)
                        _store_slopes(
                            place + j,
                            more,
                            top,
                            inverse_tau,
                            log_total,
                            weighted,
                            massless,
                            SQUARED,
                            BLOCK_K,
                        )
                    factor = 0.0
                    if TAIL == BUCKET:
                        slope = q_rest - p_rest
                        if SQUARED:
                            slope = 2.0 * q_rest * (slope - weighted)
                        slope *= inverse_tau
                        factor = tl.where(log_rest == -float("inf"), 0.0, slope / total_rest)
                    if TAIL == UNIFORM:
                        factor = 1.0 / q_total
                    place = teacher_frames + row * 4
                    tl.store(place, shift)
                    tl.store(place + 1, tl.where(massless, 0.0, factor))
                    tl.store(place + 2, tl.where(massless, 0.0, p_rest))
                    tl.store(place + 3, tl.where(massless, 0.0, weighted))
