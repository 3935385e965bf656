"""Frame kernels on a GPU: softmax, divergence and label logits of a frame, and its gradient.

One program a frame of a head. A frame wider than a block is read block by block.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from interkd.kernels._triton.lattice import FIXED_POINT, probability
from interkd.kernels._triton.prepare import BUCKET, RENORMALISE, UNIFORM, finite_or_zero

_FEW = tl.constexpr(4)  # kept tokens that are struck out one by one
_SMALLEST_SUM = tl.constexpr(1e-25)  # of exponentials below the frame's largest logit


@triton.jit
def _of_head(tensor, h, offset1, offset2, offset3, ALIGNED: tl.constexpr):
    """A head's tensor, from the first one's address."""
    if ALIGNED:
        offset1 = tl.multiple_of(offset1, 16)
        offset2 = tl.multiple_of(offset2, 16)
        offset3 = tl.multiple_of(offset3, 16)
    offset = tl.where(h == 1, offset1, tl.where(h == 2, offset2, offset3))
    offset = tl.where(h == 0, 0, offset)
    if ALIGNED:
        offset = tl.multiple_of(offset, 16)
    return tensor + offset


@triton.jit
def _unkept(v, tokens, first, end, vocab_size):
    """Which of the tokens v exist and are not kept by the teacher."""
    rest = v < vocab_size
    for j in range(first, end):
        rest &= v != tl.load(tokens + j)
    return rest


@triton.jit
def _row_sums(
    z,
    tokens,
    first,
    struck,
    vocab_size,
    inverse_tau,
    DISTILL: tl.constexpr,
    TAIL: tl.constexpr,
    TAU: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The frame's peak and sums below it.

    Returns:
        The peak; the sum of `e = exp(z - peak)` over all tokens, and over all but those of the
        entries from `first` to `struck`; over the latter also, under UNIFORM, of `e^(1/tau)`, of
        its square, and of `z - peak`.
    """
    v = tl.arange(0, BLOCK)
    if ONE_BLOCK:
        there = v < vocab_size
        value = tl.load(z + v, mask=there, other=-float("inf")).to(tl.float32)
        peak = tl.max(value, 0)
        below = value - finite_or_zero(peak)
        e = tl.exp(below)
        total = tl.sum(e, 0)
        total_rest = total
        soft = total
        squares = total
        distance = total
        if DISTILL:
            if TAIL != RENORMALISE:
                rest = _unkept(v, tokens, first, struck, vocab_size)
                total_rest = tl.sum(tl.where(rest, e, 0.0), 0)
                if TAIL == UNIFORM:
                    if TAU:
                        e = tl.exp(below * inverse_tau)
                    e = tl.where(rest, e, 0.0)
                    soft = tl.sum(e, 0)
                    squares = tl.sum(e * e, 0)
                    distance = tl.sum(tl.where(rest, below, 0.0), 0)
        return peak, total, total_rest, soft, squares, distance
    reference = finite_or_zero(tl.load(z).to(tl.float32))
    peaks = tl.full([BLOCK], -float("inf"), tl.float32)
    totals = tl.zeros([BLOCK], tl.float32)
    rests = tl.zeros([BLOCK], tl.float32)
    softs = tl.zeros([BLOCK], tl.float32)
    squared = tl.zeros([BLOCK], tl.float32)
    distances = tl.zeros([BLOCK], tl.float32)
    if (TAIL != UNIFORM) & (struck == first):
        # Without a loop within, so that the next blocks can be on their way.
        for start in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
            there = start + v < vocab_size
            value = tl.load(z + start + v, mask=there, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(peaks, value)
            shift = finite_or_zero(higher)
            totals = totals * tl.exp(peaks - shift) + tl.exp(value - shift)
            peaks = higher
        rests = totals
    else:
        for start in range(0, vocab_size, BLOCK):
            there = start + v < vocab_size
            value = tl.load(z + start + v, mask=there, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(peaks, value)
            shift = finite_or_zero(higher)
            fall = peaks - shift
            below = value - shift
            e = tl.exp(below)
            totals = totals * tl.exp(fall) + e
            if DISTILL:
                if TAIL != RENORMALISE:
                    rest = _unkept(start + v, tokens, first, struck, vocab_size)
                    rests = rests * tl.exp(fall) + tl.where(rest, e, 0.0)
                    if TAIL == UNIFORM:
                        e = tl.where(rest, tl.exp(below * inverse_tau), 0.0)
                        fall = tl.exp(fall * inverse_tau)
                        softs = softs * fall + e
                        squared = squared * fall * fall + e * e
                        distances += tl.where(rest, value - reference, 0.0)
            peaks = higher
    peak = tl.max(peaks, 0)
    shift = finite_or_zero(peak)
    fall = tl.exp(peaks - shift)
    total = tl.sum(totals * fall, 0)
    total_rest = tl.sum(rests * fall, 0)
    fall = tl.exp((peaks - shift) * inverse_tau)
    soft = tl.sum(softs * fall, 0)
    squares = tl.sum(squared * fall * fall, 0)
    distance = tl.sum(distances, 0) + (vocab_size - (struck - first)) * (reference - shift)
    return peak, total, total_rest, soft, squares, distance


@triton.jit
def _rest_below_its_peak(z, tokens, first, end, vocab_size, BLOCK: tl.constexpr):
    """Peak of the tokens not kept and the sum of exponentials below it, from another read."""
    v = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], -float("inf"), tl.float32)
    totals = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        rest = _unkept(start + v, tokens, first, end, vocab_size)
        value = tl.load(z + start + v, mask=rest, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peaks, value)
        shift = finite_or_zero(higher)
        totals = totals * tl.exp(peaks - shift) + tl.exp(value - shift)
        peaks = higher
    peak = tl.max(peaks, 0)
    return peak, tl.sum(totals * tl.exp(peaks - finite_or_zero(peak)), 0)


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


@triton.jit
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
    STAGES: tl.constexpr,
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
        STAGES: Blocks on their way from memory at a time.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    h = tl.program_id(2)
    z = _of_head(logits, h, offset1, offset2, offset3, ALIGNED)
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
        peak, total, total_rest, soft_rest, squares_rest, distance_rest = _row_sums(
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
            STAGES,
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
                tail_score = -float("inf")
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
                        shift, total_rest = _rest_below_its_peak(
                            z, tokens, first, end, vocab_size, BLOCK
                        )
                        shift = finite_or_zero(shift)
                    # A tail of no mass, unlike one of no number, has no logarithm.
                    tail_score = shift + tl.log(total_rest)
                    tail_score = tl.where(
                        (total_rest == 0.0) | (rest == 0), -float("inf"), tail_score
                    )
                    if TAU:
                        # At a high temperature the tail's score may exceed every token's.
                        top = tl.maximum(top, tail_score)
                q_total = total
                if TAU or TAIL != BUCKET:
                    e = _exponentials(kept, top, inverse_tau)
                    for j in range(first + BLOCK_K, end, BLOCK_K):
                        more = _kept_tokens(z, tokens, probs, entries, j, end, BLOCK_K)
                        e += _exponentials(more, top, inverse_tau)
                    q_total = tl.sum(e, 0)
                    if TAIL == BUCKET:
                        q_total += tl.exp((tail_score - top) * inverse_tau)
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
                    log_q_rest = (tail_score - top) * inverse_tau - log_total
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
                        factor = tl.where(tail_score == -float("inf"), 0.0, slope / total_rest)
                    if TAIL == UNIFORM:
                        factor = 1.0 / q_total
                    place = teacher_frames + row * 4
                    tl.store(place, shift)
                    tl.store(place + 1, tl.where(massless, 0.0, factor))
                    tl.store(place + 2, tl.where(massless, 0.0, p_rest))
                    tl.store(place + 3, tl.where(massless, 0.0, weighted))


@triton.jit
def _slopes(
    value,
    settings,
    in_ctc,
    compared,
    CTC: tl.constexpr,
    DISTILL: tl.constexpr,
    SQUARED: tl.constexpr,
    TAIL: tl.constexpr,
):
    """The gradient on logits that neither the transcript nor the teacher holds."""
    ctc_scale, peak, inverse, distill_scale, shift, factor, each, weighted, inverse_tau = settings
    total = tl.where(value > 0.0, 0.0, 0.0)  # of its shape, and no number of its own
    if CTC:
        total = tl.where(in_ctc, ctc_scale * inverse * tl.exp(value - peak), 0.0)
    if DISTILL:
        if TAIL == BUCKET:
            slope = factor * tl.exp(tl.minimum(value - shift, 0.0))
            total += tl.where(compared, distill_scale * slope, 0.0)
        if TAIL == UNIFORM:
            # A frame that compares nothing has a factor of 0.
            q = factor * tl.exp((value - shift) * inverse_tau)
            slope = (q - each) * inverse_tau
            if SQUARED:
                slope = 2.0 * q * (q - each - weighted) * inverse_tau
            total += tl.where(compared, distill_scale * slope, 0.0)
    return total


@triton.jit
def frame_gradients(
    logits,
    offset1: tl.int64,
    offset2: tl.int64,
    offset3: tl.int64,
    out,
    out1: tl.int64,
    out2: tl.int64,
    out3: tl.int64,
    targets,
    frame_lengths,
    target_lengths,
    compared_lengths,
    frame_offsets,
    entry_offsets,
    tokens,
    selected,
    frames,
    slot_of,
    slots,
    occupancy,
    teacher_frames,
    slopes,
    weights,
    upstream,
    ctc,
    distill,
    batch,
    T,
    vocab_size,
    width,
    entries,
    blank,
    temperature,
    first_head,
    all_heads,
    ctc_heads,
    distilled_heads,
    CTC: tl.constexpr,
    DISTILL: tl.constexpr,
    SELECTED: tl.constexpr,
    SQUARED: tl.constexpr,
    TAIL: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Frame t of utterance b under head h: the gradient on its logits, written once.

    A logit z that the teacher does not keep has, of the divergence, the gradient
    `factor * exp(z - shift)` under BUCKET and none under RENORMALISE. Under UNIFORM, with
    `q = factor * exp((z - shift) / temperature)`, it is `(q - each) / temperature`, for l2
    `2 q (q - each - weighted) / temperature`.

    Args:
        logits: As for `frame_losses`; so are all others that bear its names.
        offset1: As there.
        offset2: As there.
        offset3: As there.
        out: Gradient of the first head, to fill, `(B, T, V)` contiguous.
        out1: Elements from it to the second head's.
        out2: To the third's.
        out3: To the fourth's.
        targets: As there.
        frame_lengths: As there.
        target_lengths: As there.
        compared_lengths: As there.
        frame_offsets: As there.
        entry_offsets: As there.
        tokens: As there.
        selected: As there.
        frames: As `frame_losses` filled it.
        slot_of: See `prepare`.
        slots: See `prepare`.
        occupancy: int32 `(H, B, T, U)`, in units of 2^-30; the blank has what is left.
        teacher_frames: As `frame_losses` filled it.
        slopes: As `frame_losses` filled it.
        weights: Of the CTC losses, then of the divergences, float32 `(2, H)`.
        upstream: Gradient on the weighted total, float32 `(B,)`.
        ctc: Losses, float32 `(H, B)`: a term whose loss is infinite has no gradient.
        distill: Losses, float32 `(H, B)`.
        batch: As there.
        T: As there.
        vocab_size: As there.
        width: As there.
        entries: As there.
        blank: As there.
        temperature: As there.
        first_head: As there.
        all_heads: H.
        ctc_heads: As there.
        distilled_heads: As there.
        CTC: As there.
        DISTILL: As there.
        SELECTED: As there.
        SQUARED: As there.
        TAIL: As there.
        ALIGNED: As there, of both kinds of offsets.
        BLOCK: As there.
        BLOCK_U: As there.
        BLOCK_K: As there.
        STAGES: As there.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    h = tl.program_id(2)
    z = _of_head(logits, h, offset1, offset2, offset3, ALIGNED)
    z += (b * T + t) * vocab_size
    gradient = _of_head(out, h, out1, out2, out3, ALIGNED) + (b * T + t) * vocab_size
    h += first_head
    row = (h * batch + b) * T + t
    scale = tl.load(upstream + b)
    in_ctc = False
    ctc_scale = 0.0
    peak = 0.0
    inverse = 0.0
    if CTC:
        loss = tl.load(ctc + h * batch + b)
        ctc_scale = tl.where(loss == float("inf"), 0.0, scale * tl.load(weights + h))
        in_ctc = (t < tl.load(frame_lengths + b)) & (ctc_scale != 0.0)
        in_ctc = in_ctc & ((ctc_heads >> h) & 1 == 1)
        peak = tl.load(frames + row * 4, mask=in_ctc, other=0.0)
        inverse = tl.load(frames + row * 4 + 1, mask=in_ctc, other=0.0)
    compared = False
    distill_scale = 0.0
    first = 0
    end = 0
    shift = 0.0
    factor = 0.0
    each = 0.0
    weighted = 0.0
    if DISTILL:
        loss = tl.load(distill + h * batch + b)
        distill_scale = scale * tl.load(weights + all_heads + h)
        distill_scale = tl.where(loss == float("inf"), 0.0, distill_scale)
        compared = (t < tl.load(compared_lengths + b)) & (distill_scale != 0.0)
        compared = compared & ((distilled_heads >> h) & 1 == 1)
        n = tl.load(frame_offsets + b) + t
        if SELECTED:
            compared = compared & (tl.load(selected + n, mask=compared, other=0) != 0)
        first = tl.load(entry_offsets + n, mask=compared, other=0).to(tl.int32)
        end = tl.load(entry_offsets + n + 1, mask=compared, other=0).to(tl.int32)
        shift = tl.load(teacher_frames + row * 4, mask=compared, other=0.0)
        factor = tl.load(teacher_frames + row * 4 + 1, mask=compared, other=0.0)
        each = tl.load(teacher_frames + row * 4 + 2, mask=compared, other=0.0)
        weighted = tl.load(teacher_frames + row * 4 + 3, mask=compared, other=0.0)
    inverse_tau = 1.0 / temperature
    settings = ctc_scale, peak, inverse, distill_scale, shift, factor, each, weighted, inverse_tau
    # Everywhere as if neither transcript nor teacher held the token; those that they hold after.
    for start in tl.range(0, vocab_size, BLOCK, num_stages=STAGES):
        v = start + tl.arange(0, BLOCK)
        there = v < vocab_size
        value = tl.load(z + v, mask=there & (in_ctc | compared), other=0.0).to(tl.float32)
        result = _slopes(value, settings, in_ctc, compared, CTC, DISTILL, SQUARED, TAIL)
        tl.store(gradient + v, result.to(out.dtype.element_ty), mask=there)
    blank_share = 0.0
    if CTC:
        if in_ctc:
            tl.debug_barrier()
            u = tl.arange(0, BLOCK_U)
            valid = u < tl.load(target_lengths + b)
            token = tl.load(targets + b * width + u, mask=valid, other=0)
            slot = tl.load(slots + b * width + u, mask=valid, other=0)
            shares = tl.load(occupancy + row * width + u, mask=valid, other=0)
            blank_share = 1.0 - tl.sum(shares, 0).to(tl.float32) / FIXED_POINT
            share = tl.load(occupancy + row * width + slot, mask=valid, other=0)
            value = tl.load(z + token, mask=valid, other=0.0).to(tl.float32)
            result = _slopes(value, settings, in_ctc, compared, CTC, DISTILL, SQUARED, TAIL)
            result -= ctc_scale * (share.to(tl.float32) / FIXED_POINT)
            tl.store(gradient + token, result.to(out.dtype.element_ty), mask=valid)
            of_blank = tl.load(z + blank).to(tl.float32)
            of_blank = _slopes(of_blank, settings, in_ctc, compared, CTC, DISTILL, SQUARED, TAIL)
            of_blank -= ctc_scale * blank_share
            tl.store(gradient + blank, of_blank.to(out.dtype.element_ty))
    if DISTILL:
        if compared:
            tl.debug_barrier()
            lane = tl.arange(0, BLOCK_K)
            for j in range(first, end, BLOCK_K):
                there = j + lane < end
                kept = tl.load(tokens + j + lane, mask=there, other=0)
                place = slopes + h.to(tl.int64) * entries + j
                slope = distill_scale * tl.load(place + lane, mask=there, other=0.0)
                if CTC:
                    there_too = there & in_ctc
                    at = tl.load(slot_of + b * vocab_size + kept, mask=there_too, other=-1)
                    taken = tl.load(occupancy + row * width + at, mask=at >= 0, other=0)
                    taken = taken.to(tl.float32) / FIXED_POINT
                    taken = tl.where(kept == blank, blank_share, taken)
                    q = tl.load(z + kept, mask=there_too, other=0.0).to(tl.float32)
                    q = tl.exp(q - peak) * inverse
                    slope += tl.where(in_ctc, ctc_scale * (q - taken), 0.0)
                tl.store(gradient + kept, slope.to(out.dtype.element_ty), mask=there)
