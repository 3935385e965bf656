"""CTC lattice on a GPU: alpha and beta of all heads at once, each from its own end.

Probabilities are those of scaled.py: nothing underflows, and a step needs no logarithm. Alpha runs
from the first frame and beta from the last, in the same code: beta is alpha of the reversed
utterance. Each keeps its label states until they meet in the middle (`sweep_halves`); then each
goes on through the other's half, whose kept states give the occupancies (`sweep_occupancies`).
docs/maths.md section 6.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from interkd.kernels._triton.scaled import ZERO, normalised, power, probability, total

FIXED_POINT = tl.constexpr(1073741824.0)  # occupancies are int32 in units of 2^-30


@triton.jit
def _left(mantissa, exponent, k):
    """Each state's left neighbour, a probability of 0 where there is none."""
    high = mantissa.to(tl.int32, bitcast=True).to(tl.int64) << 32
    both = high | (exponent.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    both = tl.gather(both, tl.maximum(k - 1, 0), 0)
    mantissa = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    exponent = both.to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(k == 0, 0.0, mantissa), tl.where(k == 0, ZERO, exponent)


@triton.jit
def _enter(blank_m, blank_e, label_m, label_e, k, skips):
    """What flows into the blank before each label, and into each label, before emission."""
    left_m, left_e = _left(label_m, label_e, k)
    blank_top = tl.maximum(blank_e, left_e)
    into_blank = power(blank_e - blank_top) * blank_m + power(left_e - blank_top) * left_m
    # Where the blank may not be skipped, the left label must not set the scale either.
    left_m = tl.where(skips, left_m, 0.0)
    left_e = tl.where(skips, left_e, ZERO)
    label_top = tl.maximum(tl.maximum(blank_e, left_e), label_e)
    into_label = power(label_e - label_top) * label_m
    into_label += power(blank_e - label_top) * blank_m + power(left_e - label_top) * left_m
    return into_blank, blank_top, into_label, label_top


@triton.jit
def _emit(into_m, into_e, into_label_m, into_label_e, frame, valid, NORMALISE: tl.constexpr):
    """The states after emission; every other step may leave their mantissas as they come."""
    logit, peak, inverse, blank_m, blank_e = frame
    emit_m, emit_e = probability(logit, peak, inverse)
    emit_m = tl.where(valid, emit_m, 0.0)
    blank_m, blank_e = into_m * blank_m, into_e + blank_e
    label_m, label_e = into_label_m * emit_m, into_label_e + emit_e
    if NORMALISE:
        blank_m, blank_e = normalised(blank_m, blank_e)
        label_m, label_e = normalised(label_m, label_e)
    return blank_m, blank_e, label_m, label_e


@triton.jit
def _direction(direction, b, targets, target_lengths, width, BLOCK: tl.constexpr):
    """Places k of a direction: labels, their positions and whether a blank may be skipped."""
    k = tl.arange(0, BLOCK)
    count = tl.load(target_lengths + b).to(tl.int32)
    valid = k < count
    position = tl.where(direction == 0, k, count - 1 - k)
    before = tl.where(direction == 0, k - 1, count - k)
    row = targets + b * width
    label = tl.load(row + position, mask=valid, other=0)
    label_before = tl.load(row + before, mask=valid & (k > 0), other=-1)
    return k, count, valid, position, (k > 0) & valid & (label != label_before)


@triton.jit
def _frame(frames, label_logits, row, width, position, valid, here):
    """Logits of the labels; the frame's peak, inverse total and blank probability."""
    logit = tl.load(label_logits + row * width + position, mask=valid & here, other=0.0)
    peak = tl.load(frames + row * 4, mask=here, other=0.0)
    inverse = tl.load(frames + row * 4 + 1, mask=here, other=0.0)
    blank_m = tl.load(frames + row * 4 + 2, mask=here, other=0.0)
    blank_e = tl.load(frames + row * 4 + 3, mask=here, other=0.0)
    return logit, peak, inverse, blank_m, blank_e


@triton.jit
def _keep(kept_m, kept_e, row, width, position, valid, label_m, label_e):
    tl.store(kept_m + row * width + position, label_m, mask=valid)
    tl.store(kept_e + row * width + position, label_e, mask=valid)


# A width known to be a multiple of 16 would spread the states over the threads in another order.
@triton.jit(do_not_specialize=["batch", "T", "width"])
def sweep_halves(
    frames,
    label_logits,
    targets,
    frame_lengths,
    target_lengths,
    kept_m,
    kept_e,
    carry,
    batch,
    T,
    width,
    ctc_heads,
    BLOCK: tl.constexpr,
):
    """Alpha over the first half of an utterance's frames, beta over the second.

    Args:
        frames: Per frame peak, inverse total and the blank's probability, float32 `(H, B, T, 4)`.
        label_logits: float32 `(H, B, T, U)`.
        targets: int64 `(B, U)`.
        frame_lengths: int64 `(B,)`.
        target_lengths: int64 `(B,)`.
        kept_m: Label states after emission, their mantissas, to fill, float32 `(H, B, T, U)`.
        kept_e: Their exponents.
        carry: The last state of each direction, to fill, float32 `(H, B, 2, 4, BLOCK)`.
        batch: B.
        T: Frames.
        width: U.
        ctc_heads: Bit h is set for a head with a CTC loss.
        BLOCK: A power of two above U.
    """
    i = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    b = i % batch
    k, _, valid, position, skips = _direction(direction, b, targets, target_lengths, width, BLOCK)
    asked = (ctc_heads >> (i // batch).to(tl.int32)) & 1
    length = tl.load(frame_lengths + b).to(tl.int32) * asked
    middle = length // 2
    steps = tl.where(direction == 0, middle, length - middle)
    blank_m = tl.where(k == 0, 1.0, 0.0)
    blank_e = tl.where(k == 0, 0.0, ZERO)
    label_m = tl.zeros([BLOCK], tl.float32)
    label_e = tl.full([BLOCK], ZERO, tl.float32)
    row = i * T + tl.where(direction == 0, 0, length - 1)
    ahead = tl.where(direction == 0, 1, -1)

    # Four frames are loaded while the four before them are worked on: memory answers in the time
    # of several steps.
    place = frames, label_logits
    next0 = _frame(*place, row, width, position, valid, steps > 3)
    next1 = _frame(*place, row + ahead, width, position, valid, steps > 3)
    next2 = _frame(*place, row + 2 * ahead, width, position, valid, steps > 3)
    next3 = _frame(*place, row + 3 * ahead, width, position, valid, steps > 3)
    for step in range(0, steps - 3, 4):
        now0 = next0
        now1 = next1
        now2 = next2
        now3 = next3
        more = step + 7 < steps
        next0 = _frame(*place, row + 4 * ahead, width, position, valid, more)
        next1 = _frame(*place, row + 5 * ahead, width, position, valid, more)
        next2 = _frame(*place, row + 6 * ahead, width, position, valid, more)
        next3 = _frame(*place, row + 7 * ahead, width, position, valid, more)
        a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
        blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now0, valid, False)
        _keep(kept_m, kept_e, row, width, position, valid, label_m, label_e)
        a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
        blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now1, valid, True)
        _keep(kept_m, kept_e, row + ahead, width, position, valid, label_m, label_e)
        a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
        blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now2, valid, False)
        _keep(kept_m, kept_e, row + 2 * ahead, width, position, valid, label_m, label_e)
        a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
        blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now3, valid, True)
        _keep(kept_m, kept_e, row + 3 * ahead, width, position, valid, label_m, label_e)
        row += 4 * ahead
    for _ in range(steps % 4):
        now = _frame(*place, row, width, position, valid, True)
        a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
        blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now, valid, True)
        _keep(kept_m, kept_e, row, width, position, valid, label_m, label_e)
        row += ahead
    state = carry + (i * 2 + direction) * 4 * BLOCK + k
    tl.store(state, blank_m)
    tl.store(state + BLOCK, blank_e)
    tl.store(state + 2 * BLOCK, label_m)
    tl.store(state + 3 * BLOCK, label_e)


@triton.jit
def _met(kept_m, kept_e, row, width, position, valid, here):
    """The other direction's label states at a frame."""
    mantissa = tl.load(kept_m + row * width + position, mask=valid & here, other=0.0)
    return mantissa, tl.load(kept_e + row * width + position, mask=valid & here, other=0.0)


@triton.jit
def _add_occupancy(place, into_m, into_e, met_m, met_e, scale, total_e, valid):
    """Adds the label states' share of the likelihood; integers have the same sum in any order."""
    share = into_m * met_m * scale * power(into_e + met_e - total_e)
    amount = tl.where(share < 2.0e9, share + 0.5, 0.0).to(tl.int32)
    tl.atomic_add(place, amount, mask=valid & (amount > 0), sem="relaxed")


# A width known to be a multiple of 16 would spread the states over the threads in another order.
@triton.jit(do_not_specialize=["batch", "T", "width"])
def sweep_occupancies(
    frames,
    label_logits,
    targets,
    frame_lengths,
    target_lengths,
    kept_m,
    kept_e,
    carry,
    slots,
    occupancy,
    loss,
    batch,
    T,
    width,
    ctc_heads,
    WITH_OCCUPANCY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss where the halves meet, and each direction on through the other's half.

    Args:
        frames: As for `sweep_halves`, whose outputs are read here.
        label_logits: As above.
        targets: As above.
        frame_lengths: As above.
        target_lengths: As above.
        kept_m: As above.
        kept_e: As above.
        carry: As above.
        slots: Slot of each target token, one for all its places, int32 `(B, U)`.
        occupancy: Zeros to add the occupancy of each slot to, int32 `(H, B, T, U)`.
        loss: To fill, float32 `(H, B)`.
        batch: B.
        T: Frames.
        width: U.
        ctc_heads: As above.
        WITH_OCCUPANCY: False for the loss alone.
        BLOCK: As above.
    """
    i = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    b = i % batch
    k, count, valid, position, skips = _direction(
        direction, b, targets, target_lengths, width, BLOCK
    )
    asked = (ctc_heads >> (i // batch).to(tl.int32)) & 1
    length = tl.load(frame_lengths + b).to(tl.int32) * asked
    middle = length // 2
    steps = tl.where(direction == 0, length - middle, middle)
    state = carry + (i * 2 + direction) * 4 * BLOCK + k
    blank_m = tl.load(state)
    blank_e = tl.load(state + BLOCK)
    label_m = tl.load(state + 2 * BLOCK)
    label_e = tl.load(state + 3 * BLOCK)

    # The other direction stands on the frame that this one enters next.
    other = carry + (i * 2 + 1 - direction) * 4 * BLOCK
    with_blank = k <= count
    met_blank_m = tl.load(other + count - k, mask=with_blank, other=0.0)
    met_blank_e = tl.load(other + BLOCK + count - k, mask=with_blank, other=ZERO)
    met_m = tl.load(other + 2 * BLOCK + count - 1 - k, mask=valid, other=0.0)
    met_e = tl.load(other + 3 * BLOCK + count - 1 - k, mask=valid, other=ZERO)
    a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
    total_m, total_e = total(a * met_blank_m, x + met_blank_e, v * met_m, w + met_e)
    if direction == 0:
        value = -(total_e + tl.log2(total_m)) * 0.6931471805599453
        value = tl.where(total_m == 0.0, float("inf"), value)
        none = tl.where(count == 0, 0.0, float("inf"))
        tl.store(loss + i, tl.where(length == 0, none, value))
    if WITH_OCCUPANCY:
        scale = tl.where(total_m > 0.0, FIXED_POINT / total_m, 0.0)
        places = occupancy + tl.load(slots + b * width + position, mask=valid, other=0)
        row = i * T + tl.where(direction == 0, middle, middle - 1)
        ahead = tl.where(direction == 0, 1, -1)
        place = frames, label_logits
        kept = kept_m, kept_e
        next0 = _frame(*place, row, width, position, valid, steps > 3)
        f0, g0 = _met(*kept, row, width, position, valid, steps > 3)
        next1 = _frame(*place, row + ahead, width, position, valid, steps > 3)
        f1, g1 = _met(*kept, row + ahead, width, position, valid, steps > 3)
        next2 = _frame(*place, row + 2 * ahead, width, position, valid, steps > 3)
        f2, g2 = _met(*kept, row + 2 * ahead, width, position, valid, steps > 3)
        next3 = _frame(*place, row + 3 * ahead, width, position, valid, steps > 3)
        f3, g3 = _met(*kept, row + 3 * ahead, width, position, valid, steps > 3)
        for step in range(0, steps - 3, 4):
            now0, h0, i0 = next0, f0, g0
            now1, h1, i1 = next1, f1, g1
            now2, h2, i2 = next2, f2, g2
            now3, h3, i3 = next3, f3, g3
            more = step + 7 < steps
            next0 = _frame(*place, row + 4 * ahead, width, position, valid, more)
            f0, g0 = _met(*kept, row + 4 * ahead, width, position, valid, more)
            next1 = _frame(*place, row + 5 * ahead, width, position, valid, more)
            f1, g1 = _met(*kept, row + 5 * ahead, width, position, valid, more)
            next2 = _frame(*place, row + 6 * ahead, width, position, valid, more)
            f2, g2 = _met(*kept, row + 6 * ahead, width, position, valid, more)
            next3 = _frame(*place, row + 7 * ahead, width, position, valid, more)
            f3, g3 = _met(*kept, row + 7 * ahead, width, position, valid, more)
            a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
            _add_occupancy(places + row * width, v, w, h0, i0, scale, total_e, valid)
            blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now0, valid, False)
            a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
            _add_occupancy(places + (row + ahead) * width, v, w, h1, i1, scale, total_e, valid)
            blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now1, valid, True)
            a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
            _add_occupancy(places + (row + 2 * ahead) * width, v, w, h2, i2, scale, total_e, valid)
            blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now2, valid, False)
            a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
            _add_occupancy(places + (row + 3 * ahead) * width, v, w, h3, i3, scale, total_e, valid)
            blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now3, valid, True)
            row += 4 * ahead
        for _ in range(steps % 4):
            now = _frame(*place, row, width, position, valid, True)
            h, g = _met(*kept, row, width, position, valid, True)
            a, x, v, w = _enter(blank_m, blank_e, label_m, label_e, k, skips)
            _add_occupancy(places + row * width, v, w, h, g, scale, total_e, valid)
            blank_m, blank_e, label_m, label_e = _emit(a, x, v, w, now, valid, True)
            row += ahead
