"""Batch norm and what follows it: the sums of a pass over the inputs, then their use."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from interkd.kernels._triton.channel_rows import load_rows, store_rows, sum_pair


@triton.jit(do_not_specialize=["rows"])
def moments(x, about, partial, rows, channels, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums of every n-th tile of rows and of their squares, about the mean of the first 64 rows.

    About it a channel loses no digits, however far it is from zero.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    first = load_rows(x, tl.arange(0, 64), rows, channel, channels).to(tl.float32)
    centre = tl.sum(first, axis=0) / tl.minimum(rows, 64)
    if tl.program_id(1) == 0:
        tl.store(about + channel, centre, mask=inside)
    centre = centre[None, :]
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    squares = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        row = tile * ROWS + tl.arange(0, ROWS)
        values = load_rows(x, row, rows, channel, channels).to(tl.float32) - centre
        values = tl.where((row < rows)[:, None], values, 0.0)
        total += values
        squares += values * values
    place = partial + tl.program_id(1) * 2 * channels + channel
    tl.store(place, tl.sum(total, axis=0), mask=inside)
    tl.store(place + channels, tl.sum(squares, axis=0), mask=inside)


@triton.jit
def load_four(x, row, rows, channel, channels):
    step = row.shape[0]
    return (
        load_rows(x, row, rows, channel, channels),
        load_rows(x, row + step, rows, channel, channels),
        load_rows(x, row + 2 * step, rows, channel, channels),
        load_rows(x, row + 3 * step, rows, channel, channels),
    )


@triton.jit
def normaliser(
    partial,
    norm,
    running_mean,
    running_var,
    rows,
    channel,
    channels,
    momentum,
    epsilon,
    shares,
    SHARES: tl.constexpr,
):
    """Mean and 1 / deviation of each channel; the first program of a channel keeps them."""
    inside = channel < channels
    total, squares = sum_pair(partial, 2, channel, channels, shares, SHARES)
    total /= rows
    variance = squares / rows - total * total
    variance = tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
    mean = tl.load(norm + 2 * channels + channel, mask=inside, other=0.0) + total
    scale = 1.0 / tl.sqrt(variance + epsilon)
    if tl.program_id(1) == 0:
        tl.store(norm + channel, mean, mask=inside)
        tl.store(norm + channels + channel, scale, mask=inside)
        before = tl.load(running_mean + channel, mask=inside, other=0.0)
        tl.store(running_mean + channel, before + momentum * (mean - before), mask=inside)
        before = tl.load(running_var + channel, mask=inside, other=0.0)
        unbiased = variance * (rows / tl.maximum(rows - 1, 1).to(tl.float32))
        tl.store(running_var + channel, before + momentum * (unbiased - before), mask=inside)
    return mean, scale


@triton.jit(do_not_specialize=["rows", "shares", "threshold", "stream"])
def activate(
    x,
    partial,
    weight,
    bias,
    norm,
    running_mean,
    running_var,
    momentum,
    epsilon,
    around,
    partial_around,
    weight_around,
    bias_around,
    norm_around,
    running_mean_around,
    running_var_around,
    momentum_around,
    epsilon_around,
    mask,
    seed,
    stream,
    threshold,
    enlarge,
    out,
    rows,
    channels,
    shares,
    AROUND: tl.constexpr,
    DROPOUT: tl.constexpr,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalised, added, activated, dropped and masked; a program takes every n-th tile of rows."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    mean, scale = normaliser(
        partial,
        norm,
        running_mean,
        running_var,
        rows,
        channel,
        channels,
        momentum,
        epsilon,
        shares,
        SHARES,
    )
    slope = scale * tl.load(weight + channel, mask=inside, other=0.0)
    offset = tl.load(bias + channel, mask=inside, other=0.0) - mean * slope
    slope_around = slope
    if AROUND:
        mean, scale = normaliser(
            partial_around,
            norm_around,
            running_mean_around,
            running_var_around,
            rows,
            channel,
            channels,
            momentum_around,
            epsilon_around,
            shares,
            SHARES,
        )
        slope_around = scale * tl.load(weight_around + channel, mask=inside, other=0.0)
        offset += tl.load(bias_around + channel, mask=inside, other=0.0) - mean * slope_around
    slope, offset, slope_around = slope[None, :], offset[None, :], slope_around[None, :]
    key = tl.load(seed) + stream if DROPOUT else 0
    for tile in range(tl.program_id(1), tl.cdiv(rows, 4 * ROWS), tl.num_programs(1)):
        row = tile * 4 * ROWS + tl.arange(0, ROWS)
        # All loads before the first store, behind which the compiler would have to leave them.
        inputs = load_four(x, row, rows, channel, channels)
        others = load_four(around, row, rows, channel, channels) if AROUND else inputs
        counter = (tile * ROWS + tl.arange(0, ROWS))[:, None] * channels + channel[None, :]
        # Seven rounds pass the tests of randomness that ten do (Salmon et al. 2011).
        randoms = tl.randint4x(key, counter, n_rounds=7)
        masks = (
            tl.load(mask + row, mask=row < rows, other=0),
            tl.load(mask + row + ROWS, mask=row + ROWS < rows, other=0),
            tl.load(mask + row + 2 * ROWS, mask=row + 2 * ROWS < rows, other=0),
            tl.load(mask + row + 3 * ROWS, mask=row + 3 * ROWS < rows, other=0),
        )
        for part in tl.static_range(4):
            values = inputs[part].to(tl.float32) * slope + offset
            if AROUND:
                values += others[part].to(tl.float32) * slope_around
            values = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)
            kept = tl.broadcast_to((masks[part] != 0)[:, None], values.shape)
            if DROPOUT:
                kept &= (randoms[part] >> 1).to(tl.int32) >= threshold
                values *= enlarge
            values = tl.where(kept, values, 0.0)
            store_rows(out, values, row + part * ROWS, rows, channel, channels)
