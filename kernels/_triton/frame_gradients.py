"""The gradient on a frame's logits on a GPU, written once: one program a frame of a head."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803, SIM102

from __future__ import annotations

import triton
import triton.language as tl

from interkd.kernels._triton.lattice import FIXED_POINT
from interkd.kernels._triton.prepare import BUCKET, UNIFORM
from interkd.kernels._triton.rows import of_head


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


@triton.jit(do_not_specialize=["batch", "T", "width", "entries"])
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
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    h = tl.program_id(2)
    z = of_head(logits, h, offset1, offset2, offset3, ALIGNED)
    z += (b * T + t) * vocab_size
    gradient = of_head(out, h, out1, out2, out3, ALIGNED) + (b * T + t) * vocab_size
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
    for start in range(0, vocab_size, BLOCK):
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
