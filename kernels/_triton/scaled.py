"""Probabilities that do not underflow: a mantissa and an exponent of its own, `m * 2^e`.

Both are float32, the exponent a whole number: rounding is relative, and neither a product nor a sum
needs a logarithm. docs/maths.md section 6.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

ZERO = tl.constexpr(-1.0e38)  # exponent of a probability 0, whose mantissa is 0
_MAGIC = tl.constexpr(12583039.0)  # 1.5 * 2^23 + 127: adding it moves an integer to the low bits
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)


@triton.jit
def power(exponent):
    """2^exponent, exactly, for integers from -126 to 127; 0 below."""
    bits = (tl.maximum(exponent, -127.0) + _MAGIC).to(tl.int32, bitcast=True) << 23
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def normalised(mantissa, exponent):
    """The same probability with its mantissa in [1, 2); a mantissa that is no number stays."""
    bits = mantissa.to(tl.int32, bitcast=True)
    raised = bits >> 23
    ordinary = (raised > 0) & (raised < 255)
    plain = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    mantissa = tl.where(ordinary, plain, tl.where(raised == 0, 0.0, mantissa))
    exponent = tl.where(ordinary, exponent + (raised - 127).to(tl.float32), ZERO)
    return mantissa, tl.maximum(exponent, ZERO)


@triton.jit
def probability(logit, peak, inverse):
    """`exp(logit - peak) * inverse`, the difference with its rounding error; not normalised."""
    distance = logit - peak
    moved = logit - distance
    error = (logit - (distance + moved)) + (moved - peak)
    exponent = tl.floor(distance * _LOG2_E)
    rest = distance - exponent * _LN2_HIGH - exponent * _LN2_LOW
    # Beyond 10^6 nats float32 has no digits left for the rest.
    rest = tl.where(tl.abs(distance) > 1.0e6, 0.0, rest + error)
    nothing = distance == -float("inf")
    mantissa = tl.where(nothing, 0.0, tl.exp(rest) * inverse)
    return mantissa, tl.where(nothing, ZERO, exponent)


@triton.jit
def total(mantissa, exponent, more_mantissa, more_exponent):
    """Sum of two vectors of probabilities."""
    top = tl.maximum(tl.max(exponent, 0), tl.max(more_exponent, 0))
    parts = mantissa * power(exponent - top) + more_mantissa * power(more_exponent - top)
    return tl.sum(parts, 0), top
