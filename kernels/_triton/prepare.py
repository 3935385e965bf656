"""What all heads share on a GPU: the slots of an utterance's tokens, and the teacher's classes."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803, SIM102

from __future__ import annotations

import triton
import triton.language as tl

BUCKET = tl.constexpr(0)
UNIFORM = tl.constexpr(1)
RENORMALISE = tl.constexpr(2)


@triton.jit
def finite_or_zero(value):
    """0 for -inf: a shift that leaves exponentials of -inf at 0."""
    return tl.where(value == -float("inf"), 0.0, value)


@triton.jit
def _soften(
    n,
    entry_offsets,
    log_probs,
    probs,
    rests,
    teacher_length,
    entries,
    vocab_size,
    temperature,
    TAIL: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Class probabilities of the teacher's frame n."""
    lane = tl.arange(0, BLOCK_K)
    first = tl.load(entry_offsets + n).to(tl.int32)
    end = tl.load(entry_offsets + n + 1).to(tl.int32)
    inverse_tau = 1.0 / temperature
    rest = vocab_size - (end - first)
    kept = tl.zeros([BLOCK_K], tl.float64)
    best = -float("inf")
    for j in range(first, end, BLOCK_K):
        log_p = tl.load(log_probs + j + lane, mask=j + lane < end, other=-float("inf"))
        kept += tl.exp(log_p.to(tl.float64))
        best = tl.maximum(best, tl.max(log_p, 0))
    # The tail is a small difference of ones.
    mass = tl.maximum(1.0 - tl.sum(kept, 0), 0.0).to(tl.float32)
    alike = 1.0
    log_rest = -float("inf")
    if TAIL == UNIFORM:
        alike = tl.maximum(rest, 1).to(tl.float32)
    if TAIL != RENORMALISE:
        log_rest = tl.where(rest > 0, tl.log(mass / alike), -float("inf"))
    best = tl.maximum(best, log_rest)
    massless = best == -float("inf")
    best = finite_or_zero(best)
    sums = tl.zeros([BLOCK_K], tl.float32)
    for j in range(first, end, BLOCK_K):
        log_p = tl.load(log_probs + j + lane, mask=j + lane < end, other=-float("inf"))
        sums += tl.exp((log_p - best) * inverse_tau)
    log_total = tl.log(tl.sum(sums, 0) + alike * tl.exp((log_rest - best) * inverse_tau))
    for j in range(first, end, BLOCK_K):
        there = j + lane < end
        log_p = tl.load(log_probs + j + lane, mask=there, other=-float("inf"))
        score = (log_p - best) * inverse_tau - log_total
        tl.store(probs + j + lane, tl.exp(score), mask=there)
        tl.store(probs + entries + j + lane, score, mask=there)
    score = (log_rest - best) * inverse_tau - log_total
    tl.store(rests + n, tl.where(massless, -1.0, tl.exp(score)))
    tl.store(rests + teacher_length + n, score)


@triton.jit(do_not_specialize=["batch", "width", "teacher_length", "entries"])
def prepare(
    targets,
    target_lengths,
    slot_of,
    slots,
    entry_offsets,
    log_probs,
    probs,
    rests,
    batch,
    width,
    teacher_length,
    entries,
    vocab_size,
    temperature,
    CTC: tl.constexpr,
    DISTILL: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program i: utterance i's slots and the teacher's frame i, whichever of them there are.

    Args:
        targets: int64 `(B, U)`.
        target_lengths: int64 `(B,)`.
        slot_of: To fill: slot of every token, -1 for none, int32 `(B, V)`.
        slots: To fill: slot of each target, one for all places of a token, int32 `(B, U)`.
        entry_offsets: The teacher's, int64 `(N + 1,)`.
        log_probs: The teacher's, float32 `(E,)`.
        probs: To fill: probability at the temperature of each kept token, and its logarithm,
            float32 `(2, E)`.
        rests: To fill: likewise of the tail's class or of each token not kept, float32 `(2, N)`;
            a probability of -1 marks a frame that compares nothing.
        batch: B.
        width: U.
        teacher_length: N.
        entries: E.
        vocab_size: V.
        temperature: Above 0.
        CTC: Whether there are targets.
        DISTILL: Whether there is a teacher.
        TAIL: BUCKET, UNIFORM or RENORMALISE.
        BLOCK: Tokens at once.
        BLOCK_U: A power of two, at least U.
        BLOCK_K: Kept tokens at once.
    """
    i = tl.program_id(0).to(tl.int64)
    if DISTILL:
        if i < teacher_length:
            _soften(
                i,
                entry_offsets,
                log_probs,
                probs,
                rests,
                teacher_length,
                entries,
                vocab_size,
                temperature,
                TAIL,
                BLOCK_K,
            )
    if CTC:
        if i < batch:
            row = slot_of + i * vocab_size
            for start in range(0, vocab_size, BLOCK):
                v = start + tl.arange(0, BLOCK)
                tl.store(row + v, tl.full([BLOCK], -1, tl.int32), mask=v < vocab_size)
            tl.debug_barrier()
            u = tl.arange(0, BLOCK_U)
            valid = u < tl.load(target_lengths + i)
            token = tl.load(targets + i * width + u, mask=valid, other=0)
            # The last place is the slot: a maximum is the same in any order.
            tl.atomic_max(row + token, u, mask=valid)
            tl.debug_barrier()
            slot = tl.load(row + token, mask=valid, other=0, volatile=True)
            tl.store(slots + i * width + u, slot, mask=u < width)


@triton.jit(do_not_specialize=["batch", "T"])
def combine(
    ctc_losses,
    divergences,
    weights,
    total,
    ctc,
    distill,
    impossible,
    batch,
    T,
    ctc_heads,
    distilled_heads,
    ZERO_INFINITY: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One utterance's losses of all heads, and their weighted sum.

    Args:
        ctc_losses: float32 `(H, B)`, read for heads with a CTC loss.
        divergences: float32 `(H, B, T)`, read for heads with a divergence.
        weights: Of the CTC losses, then of the divergences, float32 `(2, H)`.
        total: To fill, float32 `(B,)`.
        ctc: To fill, float32 `(H, B)`.
        distill: To fill, float32 `(H, B)`.
        impossible: To fill: whether some head has no alignment, bool `(B,)`.
        batch: B.
        T: Frames.
        ctc_heads: Bit h is set for a head with a CTC loss.
        distilled_heads: Likewise for a divergence.
        ZERO_INFINITY: Whether an infinite CTC loss counts 0.
        HEADS: H.
        BLOCK: Frames at once.
    """
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK)
    result = 0.0
    none = False
    for h in tl.static_range(HEADS):
        loss = tl.load(ctc_losses + h * batch + b, mask=(ctc_heads >> h) & 1 == 1, other=0.0)
        tl.store(ctc + h * batch + b, loss)
        infinite = loss == float("inf")
        none = none | infinite
        if ZERO_INFINITY:
            loss = tl.where(infinite, 0.0, loss)
        result += tl.load(weights + h) * loss
        there = (distilled_heads >> h) & 1 == 1
        parts = tl.zeros([BLOCK], tl.float64)
        for start in range(0, T, BLOCK):
            row = divergences + (h * batch + b) * T + start
            parts += tl.load(row + t, mask=there & (start + t < T), other=0.0).to(tl.float64)
        loss = tl.sum(parts, 0).to(tl.float32)
        tl.store(distill + h * batch + b, loss)
        result += tl.load(weights + HEADS + h) * loss
    tl.store(total + b, result)
    tl.store(impossible + b, none)
