"""CTC lattice on a GPU: alpha and beta of all heads at once, each from its end to the middle and on.

A probability is a mantissa and an exponent of its own, `m * 2^e`, both float32: nothing underflows,
rounding is relative, and a step needs no logarithm. Alpha runs from the first frame and beta from
the last, in the same code: beta is alpha of the reversed utterance. Each keeps its label states
until they meet in the middle (`sweep_halves`); then each goes on through the other's half, whose
kept states give the occupancies (`sweep_occupancies`). docs/maths.md section 6.
"""
# mypy: disallow-untyped-decorators=False
# ruff: noqa: N803

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

FIXED_POINT = tl.constexpr(1073741824.0)  # occupancies are int32 in units of 2^-30
_ZERO = tl.constexpr(-1.0e38)  # exponent of a probability 0, whose mantissa is 0
_MAGIC = tl.constexpr(12583039.0)  # 1.5 * 2^23 + 127: adding it moves an integer to the low bits
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)


@triton.jit
def _power(exponent: Any) -> Any:
    """2^exponent, exactly, for integers from -126 to 127; 0 below."""
    bits = (tl.maximum(exponent, -127.0) + _MAGIC).to(tl.int32, bitcast=True) << 23
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _normalised(mantissa: Any, exponent: Any) -> Any:
    """The same probability with its mantissa in [1, 2); a mantissa that is no number stays."""
    bits = mantissa.to(tl.int32, bitcast=True)
    raised = bits >> 23
    ordinary = (raised > 0) & (raised < 255)
    plain = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    mantissa = tl.where(ordinary, plain, tl.where(raised == 0, 0.0, mantissa))
    exponent = tl.where(ordinary, exponent + (raised - 127).to(tl.float32), _ZERO)
    return mantissa, tl.maximum(exponent, _ZERO)


@triton.jit
def _probability(logit: Any, peak: Any, inverse: Any) -> Any:
    """`exp(logit - peak) * inverse`, the difference with its rounding error."""
    distance = logit - peak
    moved = logit - distance
    error = (logit - (distance + moved)) + (moved - peak)
    exponent = tl.floor(distance * _LOG2_E)
    rest = distance - exponent * _LN2_HIGH - exponent * _LN2_LOW
    # Beyond 10^6 nats float32 has no digits left for the rest.
    rest = tl.where(tl.abs(distance) > 1.0e6, 0.0, rest + error)
    nothing = distance == -float("inf")
    mantissa = tl.where(nothing, 0.0, tl.exp(rest) * inverse)
    return _normalised(mantissa, tl.where(nothing, _ZERO, exponent))


@triton.jit
def _left(value: Any, k: Any, first: Any) -> Any:
    """Each state's left neighbour; `first` where there is none."""
    return tl.where(k == 0, first, tl.gather(value, tl.maximum(k - 1, 0), 0))


@triton.jit
def _enter(blank_m: Any, blank_e: Any, label_m: Any, label_e: Any, k: Any, skips: Any) -> Any:
    """What flows into the blank before each label, and into each label, before emission."""
    left_m = _left(label_m, k, 0.0)
    left_e = _left(label_e, k, _ZERO)
    top = tl.maximum(blank_e, left_e)
    from_blank = _power(blank_e - top) * blank_m
    from_left = _power(left_e - top) * left_m
    label_top = tl.maximum(top, label_e)
    shift = _power(top - label_top)
    into_label = _power(label_e - label_top) * label_m + shift * (
        from_blank + tl.where(skips, from_left, 0.0)
    )
    return from_blank + from_left, top, into_label, label_top


@triton.jit
def _sum(mantissa: Any, exponent: Any, more_mantissa: Any, more_exponent: Any) -> Any:
    """Sum of two vectors of probabilities."""
    top = tl.maximum(tl.max(exponent, 0), tl.max(more_exponent, 0))
    parts = mantissa * _power(exponent - top) + more_mantissa * _power(more_exponent - top)
    return tl.sum(parts, 0), top


@triton.jit
def _direction(
    direction: Any, b: Any, targets: Any, target_lengths: Any, width: Any, BLOCK: tl.constexpr
) -> Any:
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
def sweep_halves(
    frames: Any,
    label_logits: Any,
    targets: Any,
    frame_lengths: Any,
    target_lengths: Any,
    kept_m: Any,
    kept_e: Any,
    carry: Any,
    batch: Any,
    T: Any,
    width: Any,
    BLOCK: tl.constexpr,
) -> None:
    """Alpha over the first half of an utterance's frames, beta over the second.

    Args:
        frames: Per frame peak, inverse total and blank logit, float32 `(H, B, T, 4)`.
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
        BLOCK: A power of two above U.
    """
    i = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    b = i % batch
    k, count, valid, position, skips = _direction(
        direction, b, targets, target_lengths, width, BLOCK
    )
    length = tl.load(frame_lengths + b).to(tl.int32)
    middle = length // 2
    steps = tl.where(direction == 0, middle, length - middle)
    blank_m = tl.where(k == 0, 1.0, 0.0)
    blank_e = tl.where(k == 0, 0.0, _ZERO)
    label_m = tl.zeros([BLOCK], tl.float32)
    label_e = tl.full([BLOCK], _ZERO, tl.float32)

    start = i * T + tl.where(direction == 0, 0, length - 1)
    ahead = tl.where(direction == 0, 1, -1)
    here = steps > 0
    next_logit = tl.load(label_logits + start * width + position, mask=valid & here, other=0.0)
    next_peak = tl.load(frames + start * 4, mask=here, other=0.0)
    next_inverse = tl.load(frames + start * 4 + 1, mask=here, other=0.0)
    next_blank = tl.load(frames + start * 4 + 2, mask=here, other=0.0)
    for step in range(steps):
        row = start + step * ahead
        logit, peak, inverse, blank_logit = next_logit, next_peak, next_inverse, next_blank
        # The next frame's loads are under way while this one is worked on.
        here = step + 1 < steps
        row_after = row + ahead
        next_logit = tl.load(
            label_logits + row_after * width + position, mask=valid & here, other=0.0
        )
        next_peak = tl.load(frames + row_after * 4, mask=here, other=0.0)
        next_inverse = tl.load(frames + row_after * 4 + 1, mask=here, other=0.0)
        next_blank = tl.load(frames + row_after * 4 + 2, mask=here, other=0.0)
        emit_m, emit_e = _probability(logit, peak, inverse)
        emit_m = tl.where(valid, emit_m, 0.0)
        blank_emit_m, blank_emit_e = _probability(blank_logit, peak, inverse)
        into_m, into_e, label_m, label_e = _enter(blank_m, blank_e, label_m, label_e, k, skips)
        blank_m, blank_e = _normalised(into_m * blank_emit_m, into_e + blank_emit_e)
        label_m, label_e = _normalised(label_m * emit_m, label_e + emit_e)
        tl.store(kept_m + row * width + position, label_m, mask=valid)
        tl.store(kept_e + row * width + position, label_e, mask=valid)
    state = carry + (i * 2 + direction) * 4 * BLOCK + k
    tl.store(state, blank_m)
    tl.store(state + BLOCK, blank_e)
    tl.store(state + 2 * BLOCK, label_m)
    tl.store(state + 3 * BLOCK, label_e)


@triton.jit
def sweep_occupancies(
    frames: Any,
    label_logits: Any,
    targets: Any,
    frame_lengths: Any,
    target_lengths: Any,
    kept_m: Any,
    kept_e: Any,
    carry: Any,
    slots: Any,
    occupancy: Any,
    loss: Any,
    batch: Any,
    T: Any,
    width: Any,
    WITH_OCCUPANCY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
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
        WITH_OCCUPANCY: False for the loss alone.
        BLOCK: As above.
    """
    i = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    b = i % batch
    k, count, valid, position, skips = _direction(
        direction, b, targets, target_lengths, width, BLOCK
    )
    length = tl.load(frame_lengths + b).to(tl.int32)
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
    met_blank_e = tl.load(other + BLOCK + count - k, mask=with_blank, other=_ZERO)
    met_m = tl.load(other + 2 * BLOCK + count - 1 - k, mask=valid, other=0.0)
    met_e = tl.load(other + 3 * BLOCK + count - 1 - k, mask=valid, other=_ZERO)
    into_m, into_e, into_label_m, into_label_e = _enter(
        blank_m, blank_e, label_m, label_e, k, skips
    )
    total_m, total_e = _sum(
        into_m * met_blank_m, into_e + met_blank_e, into_label_m * met_m, into_label_e + met_e
    )
    if direction == 0:
        value = -(total_e + tl.log2(total_m)) * 0.6931471805599453
        value = tl.where(total_m == 0.0, float("inf"), value)
        none = tl.where(count == 0, 0.0, float("inf"))
        tl.store(loss + i, tl.where(length == 0, none, value))
    if WITH_OCCUPANCY:
        scale = tl.where(total_m > 0.0, FIXED_POINT / total_m, 0.0)
        slot = tl.load(slots + b * width + position, mask=valid, other=0)
        start = i * T + tl.where(direction == 0, middle, middle - 1)
        ahead = tl.where(direction == 0, 1, -1)
        here = steps > 0
        next_logit = tl.load(label_logits + start * width + position, mask=valid & here, other=0.0)
        next_m = tl.load(kept_m + start * width + position, mask=valid & here, other=0.0)
        next_e = tl.load(kept_e + start * width + position, mask=valid & here, other=0.0)
        next_peak = tl.load(frames + start * 4, mask=here, other=0.0)
        next_inverse = tl.load(frames + start * 4 + 1, mask=here, other=0.0)
        next_blank = tl.load(frames + start * 4 + 2, mask=here, other=0.0)
        for step in range(steps):
            row = start + step * ahead
            logit, peak, inverse, blank_logit = next_logit, next_peak, next_inverse, next_blank
            met_m, met_e = next_m, next_e
            here = step + 1 < steps
            row_after = row + ahead
            next_logit = tl.load(
                label_logits + row_after * width + position, mask=valid & here, other=0.0
            )
            next_m = tl.load(kept_m + row_after * width + position, mask=valid & here, other=0.0)
            next_e = tl.load(kept_e + row_after * width + position, mask=valid & here, other=0.0)
            next_peak = tl.load(frames + row_after * 4, mask=here, other=0.0)
            next_inverse = tl.load(frames + row_after * 4 + 1, mask=here, other=0.0)
            next_blank = tl.load(frames + row_after * 4 + 2, mask=here, other=0.0)
            emit_m, emit_e = _probability(logit, peak, inverse)
            emit_m = tl.where(valid, emit_m, 0.0)
            blank_emit_m, blank_emit_e = _probability(blank_logit, peak, inverse)
            into_m, into_e, label_m, label_e = _enter(blank_m, blank_e, label_m, label_e, k, skips)
            share = label_m * met_m * scale * _power(label_e + met_e - total_e)
            amount = tl.where(share < 2.0e9, share + 0.5, 0.0).to(tl.int32)
            # Integers add up to the same sum in any order.
            tl.atomic_add(
                occupancy + row * width + slot, amount, mask=valid & (amount > 0), sem="relaxed"
            )
            blank_m, blank_e = _normalised(into_m * blank_emit_m, into_e + blank_emit_e)
            label_m, label_e = _normalised(label_m * emit_m, label_e + emit_e)
