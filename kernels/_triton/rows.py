"""A frame's logits on a GPU: where they are, their peak and their sums of exponentials."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803, SIM102

from __future__ import annotations

import triton
import triton.language as tl

from interkd.kernels._triton.prepare import RENORMALISE, UNIFORM, finite_or_zero


@triton.jit
def of_head(tensor, h, offset1, offset2, offset3, ALIGNED: tl.constexpr):
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
def unkept(v, tokens, first, end, vocab_size):
    """Which of the tokens v exist and are not kept by the teacher."""
    rest = v < vocab_size
    for j in range(first, end):
        rest &= v != tl.load(tokens + j)
    return rest


@triton.jit
def row_sums(
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
                rest = unkept(v, tokens, first, struck, vocab_size)
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
        # Without a loop within, the compiler has the next block on its way.
        for start in range(0, vocab_size, BLOCK):
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
                    rest = unkept(start + v, tokens, first, struck, vocab_size)
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
def rest_below_its_peak(z, tokens, first, end, vocab_size, BLOCK: tl.constexpr):
    """Peak of the tokens not kept and the sum of exponentials below it, from another read."""
    v = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], -float("inf"), tl.float32)
    totals = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        rest = unkept(start + v, tokens, first, end, vocab_size)
        value = tl.load(z + start + v, mask=rest, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peaks, value)
        shift = finite_or_zero(higher)
        totals = totals * tl.exp(peaks - shift) + tl.exp(value - shift)
        peaks = higher
    peak = tl.max(peaks, 0)
    return peak, tl.sum(totals * tl.exp(peaks - finite_or_zero(peak)), 0)
