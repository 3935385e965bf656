"""Frame kernels on a GPU: softmax, divergence and label logits of a frame, and its gradient.

One program a frame. A frame wider than a block is read block by block.
"""
# mypy: disallow-untyped-decorators=False
# ruff: noqa: N803

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from interkd.kernels._triton.lattice import FIXED_POINT

BUCKET = tl.constexpr(0)
UNIFORM = tl.constexpr(1)
RENORMALISE = tl.constexpr(2)


@triton.jit
def _unkept(v: Any, tokens: Any, first: Any, end: Any, vocab_size: Any) -> Any:
    """Which of the tokens v exist and are not kept by the teacher."""
    rest = v < vocab_size
    for j in range(first, end):
        rest &= v != tl.load(tokens + j)
    return rest


@triton.jit
def _finite_or_zero(value: Any) -> Any:
    """0 for -inf: a shift that leaves exponentials of -inf at 0."""
    return tl.where(value == -float("inf"), 0.0, value)


@triton.jit
def _rest_sums(
    z: Any,
    tokens: Any,
    first: Any,
    end: Any,
    vocab_size: Any,
    reference: Any,
    inverse_tau: Any,
    TAIL: tl.constexpr,
    TAU: tl.constexpr,
    SQUARED: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> Any:
    """Peak of the tokens not kept, and their sums below it.

    Returns:
        The peak; the sums of `e = exp(z - peak)`, of `e^(1/tau)`, of the latter's square, and of
        `z - reference`.
    """
    v = tl.arange(0, BLOCK)
    if ONE_BLOCK:
        rest = _unkept(v, tokens, first, end, vocab_size)
        value = tl.load(z + v, mask=v < vocab_size, other=0.0).to(tl.float32)
        peak = tl.max(tl.where(rest, value, -float("inf")), 0)
        below = value - _finite_or_zero(peak)
        total = tl.sum(tl.where(rest, tl.exp(below), 0.0), 0)
        softened = total
        squares = total
        distance = total
        if TAIL == UNIFORM:
            soft = tl.where(rest, tl.exp(below * inverse_tau), 0.0)
            if TAU:
                softened = tl.sum(soft, 0)
            if SQUARED:
                squares = tl.sum(soft * soft, 0)
            else:
                distance = tl.sum(tl.where(rest, value - reference, 0.0), 0)
        return peak, total, softened, squares, distance
    peaks = tl.full([BLOCK], -float("inf"), tl.float32)
    totals = tl.zeros([BLOCK], tl.float32)
    softs = tl.zeros([BLOCK], tl.float32)
    squared = tl.zeros([BLOCK], tl.float32)
    distances = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        rest = _unkept(start + v, tokens, first, end, vocab_size)
        value = tl.load(z + start + v, mask=start + v < vocab_size, other=0.0).to(tl.float32)
        value = tl.where(rest, value, -float("inf"))
        higher = tl.maximum(peaks, value)
        shift = _finite_or_zero(higher)
        fall = peaks - shift
        totals = totals * tl.exp(fall) + tl.exp(value - shift)
        if TAIL == UNIFORM:
            soft = tl.exp((value - shift) * inverse_tau)
            fall = tl.exp(fall * inverse_tau)
            softs = softs * fall + soft
            squared = squared * fall * fall + soft * soft
            distances += tl.where(rest, value - reference, 0.0)
        peaks = higher
    peak = tl.max(peaks, 0)
    fall = peaks - _finite_or_zero(peak)
    total = tl.sum(totals * tl.exp(fall), 0)
    soft_fall = tl.exp(fall * inverse_tau)
    softened = tl.sum(softs * soft_fall, 0)
    squares = tl.sum(squared * soft_fall * soft_fall, 0)
    distance = tl.sum(distances, 0)
    if not TAU:
        softened = total
    return peak, total, softened, squares, distance


@triton.jit
def frame_losses(
    logits: Any,
    batch_stride: Any,
    frame_stride: Any,
    targets: Any,
    frame_lengths: Any,
    target_lengths: Any,
    compared_lengths: Any,
    frame_offsets: Any,
    entry_offsets: Any,
    tokens: Any,
    log_probs: Any,
    selected: Any,
    frames: Any,
    label_logits: Any,
    teacher_frames: Any,
    slopes: Any,
    divergence: Any,
    T: Any,
    vocab_size: Any,
    width: Any,
    blank: Any,
    temperature: Any,
    CTC: tl.constexpr,
    DISTILL: tl.constexpr,
    SELECTED: tl.constexpr,
    SQUARED: tl.constexpr,
    TAIL: tl.constexpr,
    TAU: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One head's frame `(b, t)`: all that its losses and its gradient need of the logits.

    Args:
        logits: `(B, T, V)`, V contiguous.
        batch_stride: Its stride over B.
        frame_stride: Its stride over T.
        targets: int64 `(B, U)`.
        frame_lengths: int64 `(B,)`.
        target_lengths: int64 `(B,)`.
        compared_lengths: int64 `(B,)`.
        frame_offsets: The teacher's, int64 `(B + 1,)`.
        entry_offsets: The teacher's, int64 `(N + 1,)`.
        tokens: The teacher's, int32 `(E,)`.
        log_probs: The teacher's, float32 `(E,)`.
        selected: bool `(N,)`, read if SELECTED.
        frames: To fill: peak, inverse total and blank logit, float32 `(B, T, 4)`.
        label_logits: To fill, float32 `(B, T, U)`.
        teacher_frames: To fill: shift, factor, each, weighted, float32 `(B, T, 4)`; see
            `frame_gradients`.
        slopes: To fill: gradient of the divergence on each kept logit, float32 `(E,)`.
        divergence: To fill, float32 `(B, T)`.
        T: Frames.
        vocab_size: V.
        width: U.
        blank: Index of the blank.
        temperature: Above 0.
        CTC: Whether the head has a CTC loss.
        DISTILL: Whether it has a divergence.
        SELECTED: Whether frames are selected.
        SQUARED: l2 instead of kl.
        TAIL: BUCKET, UNIFORM or RENORMALISE.
        TAU: Whether the temperature is not 1.
        ONE_BLOCK: Whether BLOCK holds V.
        BLOCK: Tokens at once.
        BLOCK_U: A power of two, at least U.
        BLOCK_K: Kept tokens at once.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    row = b * T + t
    z = logits + b * batch_stride + t * frame_stride.to(tl.int64)
    in_ctc = False
    if CTC:
        in_ctc = t < tl.load(frame_lengths + b)
    compared = False
    first = 0
    end = 0
    if DISTILL:
        tl.store(divergence + row, 0.0)
        compared = t < tl.load(compared_lengths + b)
        n = tl.load(frame_offsets + b) + t
        if SELECTED:
            compared = compared & (tl.load(selected + n, mask=compared, other=0) != 0)
        first = tl.load(entry_offsets + n, mask=compared, other=0).to(tl.int32)
        end = tl.load(entry_offsets + n + 1, mask=compared, other=0).to(tl.int32)
    if in_ctc | compared:
        inverse_tau = 1.0 / temperature
        reference = _finite_or_zero(tl.load(z).to(tl.float32))
        peak_rest, total_rest, soft_rest, squares_rest, distance_rest = _rest_sums(
            z,
            tokens,
            first,
            end,
            vocab_size,
            reference,
            inverse_tau,
            TAIL,
            TAU,
            SQUARED,
            ONE_BLOCK,
            BLOCK,
        )
        kept = end - first
        peak_kept = -float("inf")
        mass = 0.0
        best = -float("inf")
        if DISTILL:
            lane = tl.arange(0, BLOCK_K)
            kept_mass = tl.zeros([BLOCK_K], tl.float64)
            for j in range(first, end, BLOCK_K):
                there = j + lane < end
                token = tl.load(tokens + j + lane, mask=there, other=0)
                log_p = tl.load(log_probs + j + lane, mask=there, other=-float("inf"))
                value = tl.load(z + token, mask=there, other=-float("inf")).to(tl.float32)
                peak_kept = tl.maximum(peak_kept, tl.max(value, 0))
                best = tl.maximum(best, tl.max(log_p, 0))
                kept_mass += tl.exp(log_p.to(tl.float64))
            # The tail is a small difference of ones.
            mass = tl.maximum(1.0 - tl.sum(kept_mass, 0), 0.0).to(tl.float32)
        peak = tl.maximum(peak_kept, peak_rest)
        shift = _finite_or_zero(peak)
        total = total_rest * tl.exp(peak_rest - shift)
        if DISTILL:
            rest = vocab_size - kept
            # The teacher's score of the class or the classes beside the kept tokens.
            log_rest = -float("inf")
            log_count = 0.0
            if TAIL == BUCKET:
                log_rest = tl.where(rest > 0, tl.log(mass), -float("inf"))
            if TAIL == UNIFORM:
                count = tl.maximum(rest, 1).to(tl.float32)
                log_count = tl.log(count)
                log_rest = tl.where(rest > 0, tl.log(mass / count), -float("inf"))
            best = tl.maximum(best, log_rest)
            massless = (best == -float("inf")) | (not compared)
            best = _finite_or_zero(best)
            # The student's score of that class, and the highest score of all.
            tail_score = peak_rest + tl.log(total_rest)
            tail_score = tl.where(total_rest == 0.0, -float("inf"), tail_score)
            top = peak
            if TAIL == BUCKET:
                top = tl.maximum(peak_kept, tail_score)
            if TAIL == RENORMALISE:
                top = peak_kept

            q_sum = tl.zeros([BLOCK_K], tl.float32)
            p_sum = tl.zeros([BLOCK_K], tl.float32)
            e_sum = tl.zeros([BLOCK_K], tl.float32)
            for j in range(first, end, BLOCK_K):
                there = j + lane < end
                token = tl.load(tokens + j + lane, mask=there, other=0)
                log_p = tl.load(log_probs + j + lane, mask=there, other=-float("inf"))
                value = tl.load(z + token, mask=there, other=-float("inf")).to(tl.float32)
                e_sum += tl.where(there, tl.exp(value - shift), 0.0)
                q_sum += tl.where(there, tl.exp((value - top) * inverse_tau), 0.0)
                p_sum += tl.where(there, tl.exp((log_p - best) * inverse_tau), 0.0)
            total += tl.sum(e_sum, 0)
            p_total = tl.sum(p_sum, 0)
            q_total = tl.sum(q_sum, 0)
            if TAIL == BUCKET:
                p_total += tl.exp((log_rest - best) * inverse_tau)
                q_total += tl.exp((tail_score - top) * inverse_tau)
            if TAIL == UNIFORM:
                p_total += tl.exp((log_rest - best) * inverse_tau + log_count)
                q_total += soft_rest * tl.exp((peak_rest - top) * inverse_tau)
            p_log_total = tl.log(p_total)
            q_log_total = tl.log(q_total)

            loss = 0.0
            weighted = 0.0
            p_rest = tl.exp((log_rest - best) * inverse_tau - p_log_total)  # of each class
            q_rest = 0.0
            if TAIL == BUCKET:
                log_ratio = ((log_rest - best) - (tail_score - top)) * inverse_tau
                log_ratio -= p_log_total - q_log_total
                q_rest = tl.exp((tail_score - top) * inverse_tau - q_log_total)
                if SQUARED:
                    loss = (p_rest - q_rest) * (p_rest - q_rest)
                    weighted = q_rest * (q_rest - p_rest)
                else:
                    loss = tl.where(p_rest > 0.0, p_rest * log_ratio, 0.0)
            if TAIL == UNIFORM:
                if SQUARED:
                    norm = tl.exp((peak_rest - top) * inverse_tau - q_log_total)
                    q1 = soft_rest * norm
                    q2 = squares_rest * norm * norm
                    loss = q2 - 2.0 * p_rest * q1 + rest * p_rest * p_rest
                    weighted = q2 - p_rest * q1
                else:
                    log_p_rest = (log_rest - best) * inverse_tau - p_log_total
                    below = (distance_rest + rest * (reference - top)) * inverse_tau
                    cross = rest * (log_p_rest + q_log_total) - below
                    loss = tl.where((p_rest > 0.0) & (rest > 0), p_rest * cross, 0.0)
            loss_sum = tl.zeros([BLOCK_K], tl.float32)
            weighted_sum = tl.zeros([BLOCK_K], tl.float32)
            for j in range(first, end, BLOCK_K):
                there = j + lane < end
                token = tl.load(tokens + j + lane, mask=there, other=0)
                log_p = tl.load(log_probs + j + lane, mask=there, other=-float("inf"))
                value = tl.load(z + token, mask=there, other=-float("inf")).to(tl.float32)
                log_p = (log_p - best) * inverse_tau - p_log_total
                log_q = (value - top) * inverse_tau - q_log_total
                p = tl.exp(log_p)
                q = tl.exp(log_q)
                if SQUARED:
                    loss_sum += tl.where(there, (p - q) * (p - q), 0.0)
                    weighted_sum += tl.where(there, q * (q - p), 0.0)
                else:
                    loss_sum += tl.where(there & (p > 0.0), p * (log_p - log_q), 0.0)
            loss += tl.sum(loss_sum, 0)
            weighted += tl.sum(weighted_sum, 0)
            for j in range(first, end, BLOCK_K):
                there = j + lane < end
                token = tl.load(tokens + j + lane, mask=there, other=0)
                log_p = tl.load(log_probs + j + lane, mask=there, other=-float("inf"))
                value = tl.load(z + token, mask=there, other=-float("inf")).to(tl.float32)
                p = tl.exp((log_p - best) * inverse_tau - p_log_total)
                q = tl.exp((value - top) * inverse_tau - q_log_total)
                slope = (q - p) * inverse_tau
                if SQUARED:
                    slope = 2.0 * q * ((q - p) - weighted) * inverse_tau
                tl.store(slopes + j + lane, tl.where(massless, 0.0, slope), mask=there)

            factor = 0.0
            shift_rest = _finite_or_zero(peak_rest)
            if TAIL == BUCKET:
                slope = (q_rest - p_rest) * inverse_tau
                if SQUARED:
                    slope = 2.0 * q_rest * ((q_rest - p_rest) - weighted) * inverse_tau
                factor = tl.where(total_rest == 0.0, 0.0, slope / total_rest)
            if TAIL == UNIFORM:
                shift_rest = top
                factor = tl.exp(-q_log_total)
            if compared:
                tl.store(divergence + row, tl.where(massless, 0.0, loss))
                tl.store(teacher_frames + row * 4, shift_rest)
                tl.store(teacher_frames + row * 4 + 1, tl.where(massless, 0.0, factor))
                tl.store(teacher_frames + row * 4 + 2, tl.where(massless, 0.0, p_rest))
                tl.store(teacher_frames + row * 4 + 3, tl.where(massless, 0.0, weighted))
        tl.store(frames + row * 4, peak)
        tl.store(frames + row * 4 + 1, 1.0 / total)
        if CTC:
            if in_ctc:
                tl.store(frames + row * 4 + 2, tl.load(z + blank).to(tl.float32))
                u = tl.arange(0, BLOCK_U)
                valid = u < tl.load(target_lengths + b)
                label = tl.load(targets + b * width + u, mask=valid, other=0)
                value = tl.load(z + label, mask=valid, other=0.0).to(tl.float32)
                tl.store(label_logits + row * width + u, value, mask=valid)


@triton.jit
def frame_gradients(
    logits: Any,
    batch_stride: Any,
    frame_stride: Any,
    out: Any,
    frame_lengths: Any,
    compared_lengths: Any,
    frame_offsets: Any,
    entry_offsets: Any,
    tokens: Any,
    selected: Any,
    frames: Any,
    slot_of: Any,
    occupancy: Any,
    teacher_frames: Any,
    slopes: Any,
    ctc_scales: Any,
    distill_scales: Any,
    T: Any,
    vocab_size: Any,
    width: Any,
    blank: Any,
    temperature: Any,
    CTC: tl.constexpr,
    DISTILL: tl.constexpr,
    SELECTED: tl.constexpr,
    SQUARED: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_U: tl.constexpr,
) -> None:
    """One head's frame `(b, t)`: the gradient on its logits, written once.

    A logit z that the teacher does not keep has, of the divergence, the gradient
    `factor * exp(z - shift)` under BUCKET and none under RENORMALISE. Under UNIFORM, with
    `q = factor * exp((z - shift) / temperature)`, it is `(q - each) / temperature`, for l2
    `2 q (q - each - weighted) / temperature`.

    Args:
        logits: As for `frame_losses`; so are all others that bear its names.
        batch_stride: Of the logits.
        frame_stride: Of the logits.
        out: Gradient, to fill, `(B, T, V)` contiguous.
        frame_lengths: As above.
        compared_lengths: As above.
        frame_offsets: As above.
        entry_offsets: As above.
        tokens: As above.
        selected: As above.
        frames: As `frame_losses` filled it.
        slot_of: Slot of every token in an utterance's occupancies, -1 for none, int32 `(B, V)`.
        occupancy: int32 `(B, T, U)`, in units of 2^-30; the blank has what is left.
        teacher_frames: As `frame_losses` filled it.
        slopes: As `frame_losses` filled it.
        ctc_scales: Upstream gradient of the CTC loss, float32 `(B,)`.
        distill_scales: Upstream gradient of the divergence, float32 `(B,)`.
        T: Frames.
        vocab_size: V.
        width: U.
        blank: As above.
        temperature: As above.
        CTC: As above.
        DISTILL: As above.
        SELECTED: As above.
        SQUARED: As above.
        TAIL: As above.
        BLOCK: As above.
        BLOCK_U: As above.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    row = b * T + t
    z = logits + b * batch_stride + t * frame_stride.to(tl.int64)
    gradient = out + row * vocab_size
    in_ctc = False
    ctc_scale = 0.0
    blank_share = 0.0
    peak = 0.0
    inverse = 0.0
    if CTC:
        ctc_scale = tl.load(ctc_scales + b)
        in_ctc = (t < tl.load(frame_lengths + b)) & (ctc_scale != 0.0)
        peak = tl.load(frames + row * 4, mask=in_ctc, other=0.0)
        inverse = tl.load(frames + row * 4 + 1, mask=in_ctc, other=0.0)
        u = tl.arange(0, BLOCK_U)
        shares = tl.load(occupancy + row * width + u, mask=(u < width) & in_ctc, other=0)
        blank_share = 1.0 - tl.sum(shares, 0).to(tl.float32) / FIXED_POINT
    compared = False
    distill_scale = 0.0
    first = 0
    end = 0
    shift = 0.0
    factor = 0.0
    each = 0.0
    weighted = 0.0
    if DISTILL:
        distill_scale = tl.load(distill_scales + b)
        compared = (t < tl.load(compared_lengths + b)) & (distill_scale != 0.0)
        n = tl.load(frame_offsets + b) + t
        if SELECTED:
            compared = compared & (tl.load(selected + n, mask=compared, other=0) != 0)
        first = tl.load(entry_offsets + n, mask=compared, other=0).to(tl.int32)
        end = tl.load(entry_offsets + n + 1, mask=compared, other=0).to(tl.int32)
        shift = tl.load(teacher_frames + row * 4, mask=compared, other=0.0)
        factor = tl.load(teacher_frames + row * 4 + 1, mask=compared, other=0.0)
        each = tl.load(teacher_frames + row * 4 + 2, mask=compared, other=0.0)
        weighted = tl.load(teacher_frames + row * 4 + 3, mask=compared, other=0.0)
    for start in range(0, vocab_size, BLOCK):
        v = start + tl.arange(0, BLOCK)
        there = v < vocab_size
        value = tl.load(z + v, mask=there & (in_ctc | compared), other=0.0).to(tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        if CTC:
            slot = tl.load(slot_of + b * vocab_size + v, mask=there & in_ctc, other=-1)
            share = tl.load(occupancy + row * width + slot, mask=slot >= 0, other=0)
            share = tl.where(v == blank, blank_share, share.to(tl.float32) / FIXED_POINT)
            q = tl.exp(value - peak) * inverse
            total = tl.where(in_ctc, ctc_scale * (q - share), 0.0)
        if DISTILL:
            slope = tl.zeros([BLOCK], tl.float32)
            if TAIL == BUCKET:
                slope = factor * tl.exp(tl.minimum(value - shift, 0.0))
            if TAIL == UNIFORM:
                inverse_tau = 1.0 / temperature
                # A frame that compares nothing has a factor of 0.
                q = factor * tl.exp((value - shift) * inverse_tau)
                slope = (q - each) * inverse_tau
                if SQUARED:
                    slope = 2.0 * q * (q - each - weighted) * inverse_tau
            for j in range(first, end):
                slope = tl.where(v == tl.load(tokens + j), tl.load(slopes + j), slope)
            total += tl.where(compared, distill_scale * slope, 0.0)
        tl.store(gradient + v, total.to(out.dtype.element_ty), mask=there)
