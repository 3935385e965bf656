"""Norm, way around a block, ReLU, dropout and mask in two passes each way, on CUDA."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHANNELS = 64  # bfloat16: a whole line of memory
_ROWS = 16  # four times: rows of a tile that is written
_ROWS_OF_SUMS = 128
_PROGRAMS = 528  # four for each multiprocessor of an H100 or H200
_SHARES = 32  # of a sum: each program that needs it adds them up


class Running(NamedTuple):
    """What a batch norm averages from batch to batch: float32 `(C,)`, changed in place."""

    mean: Tensor
    var: Tensor
    momentum: float
    epsilon: float


@triton.jit
def load_rows(x, row, rows, channel, channels):
    valid = (row < rows)[:, None] & (channel < channels)[None, :]
    place = x + row.to(tl.int64)[:, None] * channels + channel[None, :]
    return tl.load(place, mask=valid, other=0.0)


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
def store_rows(x, values, row, rows, channel, channels):
    valid = (row < rows)[:, None] & (channel < channels)[None, :]
    tl.store(x + row.to(tl.int64)[:, None] * channels + channel[None, :], values, mask=valid)


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


def _parts(whole: int, part: int) -> int:
    return (whole + part - 1) // part


def _grids(x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Programs that sum, so many shares a block of channels, and programs that write."""
    rows, blocks = x.numel() // x.shape[-1], _parts(x.shape[-1], _CHANNELS)
    shares = max(1, min(_SHARES, _parts(rows, _ROWS_OF_SUMS)))
    return (blocks, shares), (blocks, max(1, min(_PROGRAMS // blocks, _parts(rows, 2 * _ROWS))))


def _moments(x: Tensor, stats: Tensor) -> Tensor:
    channels, (grid, _) = x.shape[-1], _grids(x)
    partial = torch.empty(grid[1], 2, channels, dtype=torch.float32, device=x.device)
    rows = x.numel() // channels
    sizes = {"ROWS": _ROWS_OF_SUMS, "BLOCK_C": _CHANNELS}
    moments[grid](x, stats[2], partial, rows, channels, **sizes, num_warps=8)
    return partial


class NormActivation(torch.autograd.Function):
    """`dropout(relu(norm(x) + norm_around(around))) * mask` of `(B, T, C)`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        around: Tensor | None,
        weight_around: Tensor | None,
        bias_around: Tensor | None,
        norm: Running,
        norm_around: Running | None,
        mask: Tensor,
        dropout: float,
        seed: Tensor | None,
        stream: int,
    ) -> Tensor:
        x = x.contiguous()
        around = None if around is None else around.contiguous()
        channels, (sums, grid) = x.shape[-1], _grids(x)
        out = torch.empty_like(x)
        ctx.enlarge = 1 / (1 - dropout)
        # Mean, 1 / deviation, and what the sums are about.
        stats = torch.empty(3, channels, dtype=torch.float32, device=x.device)
        stats_around = None if around is None else torch.empty_like(stats)
        activate[grid](
            x,
            _moments(x, stats),
            weight,
            bias,
            stats,
            *norm,
            around,
            None if around is None else _moments(around, cast(Tensor, stats_around)),
            weight_around,
            bias_around,
            stats_around,
            *((None, None, 0.0, 0.0) if norm_around is None else norm_around),
            mask.contiguous(),
            seed,
            stream,
            round(dropout * 2**31),
            ctx.enlarge,
            out,
            x.numel() // channels,
            channels,
            sums[1],
            AROUND=around is not None,
            DROPOUT=dropout > 0,
            SHARES=triton.next_power_of_2(sums[1]),
            ROWS=_ROWS,
            BLOCK_C=_CHANNELS,
        )
        ctx.save_for_backward(x, weight, stats, around, weight_around, stats_around, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats, around, weight_around, stats_around, out = ctx.saved_tensors
        slope = slope.contiguous()
        channels, (sums, grid) = x.shape[-1], _grids(x)
        rows, is_around = x.numel() // channels, around is not None
        on = {"dtype": torch.float32, "device": x.device}
        partial = torch.empty(sums[1], 3 if is_around else 2, channels, **on)
        weights = torch.empty(4 if is_around else 2, channels, **on)
        slope_x = torch.empty_like(x)
        slope_around = None if around is None else torch.empty_like(around)
        sum_slopes[sums](
            slope,
            out,
            x,
            stats,
            around,
            stats_around,
            ctx.enlarge,
            partial,
            rows,
            channels,
            AROUND=is_around,
            ROWS=_ROWS_OF_SUMS // 2,
            BLOCK_C=_CHANNELS,
            num_warps=8,
        )
        slopes_of_inputs[grid](
            slope,
            out,
            x,
            stats,
            weight,
            around,
            stats_around,
            weight_around,
            ctx.enlarge,
            partial,
            slope_x,
            slope_around,
            weights,
            rows,
            channels,
            sums[1],
            AROUND=is_around,
            SHARES=triton.next_power_of_2(sums[1]),
            ROWS=_ROWS,
            BLOCK_C=_CHANNELS,
        )
        slopes = [slope_x, weights[1], weights[0], None, None, None]
        if is_around:
            slopes[3:] = [slope_around, weights[2], weights[3]]
        return (*slopes, None, None, None, None, None, None)


apply = NormActivation.apply
