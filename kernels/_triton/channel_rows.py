"""Frames as rows of channels: loads, stores, and sums that several programs have shared."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(x, row, rows, channel, channels):
    valid = (row < rows)[:, None] & (channel < channels)[None, :]
    place = x + row.to(tl.int64)[:, None] * channels + channel[None, :]
    return tl.load(place, mask=valid, other=0.0)


@triton.jit
def store_rows(x, values, row, rows, channel, channels):
    valid = (row < rows)[:, None] & (channel < channels)[None, :]
    tl.store(x + row.to(tl.int64)[:, None] * channels + channel[None, :], values, mask=valid)


@triton.jit
def add_pairs(left0, left1, right0, right1):
    return left0 + right0, left1 + right1


@triton.jit
def sum_pair(partial, kinds, channel, channels, shares, SHARES: tl.constexpr):
    """The first two kinds of sum of all shares, a number a channel."""
    share = tl.arange(0, SHARES)[:, None]
    place = partial + share * kinds * channels + channel[None, :]
    valid = (share < shares) & (channel < channels)[None, :]
    first = tl.load(place, mask=valid, other=0.0)
    second = tl.load(place + channels, mask=valid, other=0.0)
    return tl.reduce((first, second), 0, add_pairs)
