"""The gradient of batch norm and what follows it: sums of a pass, then the inputs' gradients."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from interkd.kernels._triton.channel_rows import load_rows, store_rows, sum_pair


@triton.jit
def passed(slope, out, row, rows, channel, channels, enlarge):
    """The gradient of what was positive at the end: it had passed ReLU, dropout and mask."""
    active = load_rows(out, row, rows, channel, channels) > 0
    values = load_rows(slope, row, rows, channel, channels).to(tl.float32) * enlarge
    return tl.where(active, values, 0.0)


@triton.jit(do_not_specialize=["rows"])
def sum_slopes(
    slope,
    out,
    x,
    norm,
    around,
    norm_around,
    enlarge,
    partial,
    rows,
    channels,
    AROUND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of the gradient before the activation, alone and times each normalised input."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    mean = tl.load(norm + channel, mask=inside, other=0.0)[None, :]
    scale = tl.load(norm + channels + channel, mask=inside, other=0.0)
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    products = tl.zeros((ROWS, BLOCK_C), tl.float32)
    mean_around, scale_around, products_around = mean, scale, products
    if AROUND:
        mean_around = tl.load(norm_around + channel, mask=inside, other=0.0)[None, :]
        scale_around = tl.load(norm_around + channels + channel, mask=inside, other=0.0)
    for tile in range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        row = tile * ROWS + tl.arange(0, ROWS)
        values = passed(slope, out, row, rows, channel, channels, enlarge)
        total += values
        inputs = load_rows(x, row, rows, channel, channels).to(tl.float32)
        products += values * (inputs - mean)
        if AROUND:
            inputs = load_rows(around, row, rows, channel, channels).to(tl.float32)
            products_around += values * (inputs - mean_around)
    kinds = 3 if AROUND else 2
    place = partial + tl.program_id(1) * kinds * channels + channel
    tl.store(place, tl.sum(total, axis=0), mask=inside)
    tl.store(place + channels, tl.sum(products, axis=0) * scale, mask=inside)
    if AROUND:
        sums = tl.sum(products_around, axis=0) * scale_around
        tl.store(place + 2 * channels, sums, mask=inside)


@triton.jit(do_not_specialize=["rows", "shares"])
def slopes_of_inputs(
    slope,
    out,
    x,
    norm,
    weight,
    around,
    norm_around,
    weight_around,
    enlarge,
    partial,
    slope_x,
    slope_around,
    slope_weights,
    rows,
    channels,
    shares,
    AROUND: tl.constexpr,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of the inputs and, by the first program of a channel, of weights and bias."""
    kinds = 3 if AROUND else 2
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    total, products = sum_pair(partial, kinds, channel, channels, shares, SHARES)
    mean = tl.load(norm + channel, mask=inside, other=0.0)[None, :]
    scale = tl.load(norm + channels + channel, mask=inside, other=0.0)
    factor = (scale * tl.load(weight + channel, mask=inside, other=0.0))[None, :]
    by_input = (scale * products / rows)[None, :]
    average = (total / rows)[None, :]
    mean_around, factor_around, by_around = mean, factor, by_input
    if AROUND:
        share = tl.arange(0, SHARES)[:, None]
        place = partial + (share * kinds + 2) * channels + channel[None, :]
        sums = tl.load(place, mask=(share < shares) & inside[None, :], other=0.0)
        products_around = tl.sum(sums, axis=0)
        mean_around = tl.load(norm_around + channel, mask=inside, other=0.0)[None, :]
        scale = tl.load(norm_around + channels + channel, mask=inside, other=0.0)
        weights = tl.load(weight_around + channel, mask=inside, other=0.0)
        factor_around = (scale * weights)[None, :]
        by_around = (scale * products_around / rows)[None, :]
    if tl.program_id(1) == 0:
        tl.store(slope_weights + channel, total, mask=inside)
        tl.store(slope_weights + channels + channel, products, mask=inside)
        if AROUND:
            tl.store(slope_weights + 2 * channels + channel, products_around, mask=inside)
            # The bias of either norm has this gradient, and memory of its own: clipping changes it.
            tl.store(slope_weights + 3 * channels + channel, total, mask=inside)
    for tile in range(tl.program_id(1), tl.cdiv(rows, 2 * ROWS), tl.num_programs(1)):
        row = tile * 2 * ROWS + tl.arange(0, 2 * ROWS)
        values = passed(slope, out, row, rows, channel, channels, enlarge) - average
        inputs = load_rows(x, row, rows, channel, channels).to(tl.float32) - mean
        others = inputs
        if AROUND:
            others = load_rows(around, row, rows, channel, channels).to(tl.float32) - mean_around
        change = factor * (values - inputs * by_input)
        store_rows(slope_x, change, row, rows, channel, channels)
        if AROUND:
            change = factor_around * (values - others * by_around)
            store_rows(slope_around, change, row, rows, channel, channels)
