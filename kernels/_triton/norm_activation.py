"""Norm, way around a block, ReLU, dropout and mask in two passes each way, on CUDA."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHANNELS = 64  # bfloat16: a whole line of memory
_ROWS = 16  # four times: a program's rows at once
_PROGRAMS = 528  # four for each multiprocessor of an H100 or H200
_MOST_SHARES = 64
_WARPS = 4


class Running(NamedTuple):
    """What a batch norm averages from batch to batch: float32 `(C,)`, changed in place."""

    mean: Tensor
    var: Tensor
    momentum: float
    epsilon: float


@triton.jit
def moments(x, partial, rows, channels, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums of every n-th tile of rows and of their squares, about the first row.

    About a value of its own, a channel loses no digits however far it is from zero.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    about = tl.load(x + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((4 * ROWS, BLOCK_C), tl.float32)
    squares = tl.zeros((4 * ROWS, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(rows, 4 * ROWS), tl.num_programs(1)):
        row = tile * 4 * ROWS + tl.arange(0, 4 * ROWS)
        valid = (row < rows)[:, None] & inside[None, :]
        place = x + row.to(tl.int64)[:, None] * channels + channel[None, :]
        values = tl.load(place, mask=valid, other=0.0).to(tl.float32)
        values = tl.where(valid, values - about, 0.0)
        total += values
        squares += values * values
    place = partial + tl.program_id(1) * 2 * channels + channel
    tl.store(place, tl.sum(total, axis=0), mask=inside)
    tl.store(place + channels, tl.sum(squares, axis=0), mask=inside)


@triton.jit
def sum_shares(partial, kind, kinds, channel, channels, shares, SHARES: tl.constexpr):
    """One kind of sum, of all shares, a number a channel."""
    share = tl.arange(0, SHARES)[:, None]
    place = partial + (share * kinds + kind) * channels + channel[None, :]
    valid = (share < shares) & (channel < channels)[None, :]
    return tl.sum(tl.load(place, mask=valid, other=0.0), axis=0)


@triton.jit
def normaliser(
    x,
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
    total = sum_shares(partial, 0, 2, channel, channels, shares, SHARES) / rows
    squares = sum_shares(partial, 1, 2, channel, channels, shares, SHARES) / rows
    variance = tl.maximum(squares - total * total, 0.0)
    mean = tl.load(x + channel, mask=inside, other=0.0).to(tl.float32) + total
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


@triton.jit(do_not_specialize=["threshold", "stream"])
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
        x,
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
            around,
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
        counter = (tile * ROWS + tl.arange(0, ROWS))[:, None] * channels + channel[None, :]
        # Seven rounds pass the tests of randomness that ten do (Salmon et al. 2011).
        randoms = tl.randint4x(key, counter, n_rounds=7)
        for part in tl.static_range(4):
            row = (tile * 4 + part) * ROWS + tl.arange(0, ROWS)
            valid = (row < rows)[:, None] & inside[None, :]
            place = row.to(tl.int64)[:, None] * channels + channel[None, :]
            values = tl.load(x + place, mask=valid, other=0.0).to(tl.float32) * slope + offset
            if AROUND:
                other = tl.load(around + place, mask=valid, other=0.0).to(tl.float32)
                values += other * slope_around
            is_frame = tl.load(mask + row, mask=row < rows, other=0) != 0
            values = tl.where(is_frame[:, None], tl.maximum(values, 0.0), 0.0)
            if DROPOUT:
                kept = (randoms[part] >> 1).to(tl.int32) >= threshold
                values = tl.where(kept, values * enlarge, 0.0)
            tl.store(out + place, values, mask=valid)


@triton.jit
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
    total = tl.zeros((2 * ROWS, BLOCK_C), tl.float32)
    products = tl.zeros((2 * ROWS, BLOCK_C), tl.float32)
    mean_around, scale_around, products_around = mean, scale, products
    if AROUND:
        mean_around = tl.load(norm_around + channel, mask=inside, other=0.0)[None, :]
        scale_around = tl.load(norm_around + channels + channel, mask=inside, other=0.0)
    for tile in range(tl.program_id(1), tl.cdiv(rows, 2 * ROWS), tl.num_programs(1)):
        row = tile * 2 * ROWS + tl.arange(0, 2 * ROWS)
        valid = (row < rows)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * channels + channel[None, :]
        # What was positive at the end had passed ReLU, dropout and mask; the rest had not.
        active = tl.load(out + place, mask=valid, other=0.0) > 0
        values = tl.load(slope + place, mask=valid, other=0.0).to(tl.float32) * enlarge
        values = tl.where(active, values, 0.0)
        total += values
        inputs = tl.load(x + place, mask=valid, other=0.0).to(tl.float32)
        products += values * (inputs - mean)
        if AROUND:
            inputs = tl.load(around + place, mask=valid, other=0.0).to(tl.float32)
            products_around += values * (inputs - mean_around)
    kinds = 3 if AROUND else 2
    place = partial + tl.program_id(1) * kinds * channels + channel
    tl.store(place, tl.sum(total, axis=0), mask=inside)
    tl.store(place + channels, tl.sum(products, axis=0) * scale, mask=inside)
    if AROUND:
        sums = tl.sum(products_around, axis=0) * scale_around
        tl.store(place + 2 * channels, sums, mask=inside)


@triton.jit
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
    total = sum_shares(partial, 0, kinds, channel, channels, shares, SHARES)
    products = sum_shares(partial, 1, kinds, channel, channels, shares, SHARES)
    mean = tl.load(norm + channel, mask=inside, other=0.0)[None, :]
    scale = tl.load(norm + channels + channel, mask=inside, other=0.0)
    factor = (scale * tl.load(weight + channel, mask=inside, other=0.0))[None, :]
    by_input = (scale * products / rows)[None, :]
    average = (total / rows)[None, :]
    mean_around, factor_around, by_around = mean, factor, by_input
    if AROUND:
        products_around = sum_shares(partial, 2, kinds, channel, channels, shares, SHARES)
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
    for tile in range(tl.program_id(1), tl.cdiv(rows, 2 * ROWS), tl.num_programs(1)):
        row = tile * 2 * ROWS + tl.arange(0, 2 * ROWS)
        valid = (row < rows)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * channels + channel[None, :]
        active = tl.load(out + place, mask=valid, other=0.0) > 0
        values = tl.load(slope + place, mask=valid, other=0.0).to(tl.float32) * enlarge
        values = tl.where(active, values, 0.0) - average
        inputs = tl.load(x + place, mask=valid, other=0.0).to(tl.float32) - mean
        tl.store(slope_x + place, factor * (values - inputs * by_input), mask=valid)
        if AROUND:
            inputs = tl.load(around + place, mask=valid, other=0.0).to(tl.float32) - mean_around
            change = factor_around * (values - inputs * by_around)
            tl.store(slope_around + place, change, mask=valid)


def _parts(whole: int, part: int) -> int:
    return (whole + part - 1) // part


def _grid(rows: int, channels: int) -> tuple[int, int]:
    blocks = _parts(channels, _CHANNELS)
    return blocks, max(1, min(_MOST_SHARES, _PROGRAMS // blocks, _parts(rows, 4 * _ROWS)))


def _moments(x: Tensor) -> Tensor:
    channels = x.shape[-1]
    rows = x.numel() // channels
    grid = _grid(rows, channels)
    partial = torch.empty(grid[1], 2, channels, dtype=torch.float32, device=x.device)
    moments[grid](x, partial, rows, channels, ROWS=_ROWS, BLOCK_C=_CHANNELS, num_warps=2 * _WARPS)
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
        channels = x.shape[-1]
        rows = x.numel() // channels
        grid = _grid(rows, channels)
        out = torch.empty_like(x)
        ctx.enlarge = 1 / (1 - dropout)
        stats = torch.empty(2, channels, dtype=torch.float32, device=x.device)
        stats_around = None if around is None else torch.empty_like(stats)
        activate[grid](
            x,
            _moments(x),
            weight,
            bias,
            stats,
            *norm,
            around,
            None if around is None else _moments(around),
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
            rows,
            channels,
            grid[1],
            AROUND=around is not None,
            DROPOUT=dropout > 0,
            SHARES=triton.next_power_of_2(grid[1]),
            ROWS=_ROWS,
            BLOCK_C=_CHANNELS,
            num_warps=_WARPS,
        )
        ctx.save_for_backward(x, weight, stats, around, weight_around, stats_around, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats, around, weight_around, stats_around, out = ctx.saved_tensors
        slope = slope.contiguous()
        channels = x.shape[-1]
        rows = x.numel() // channels
        grid = _grid(rows, channels)
        kinds = 2 if around is None else 3
        partial = torch.empty(grid[1], kinds, channels, dtype=torch.float32, device=x.device)
        sums = torch.empty(kinds, channels, dtype=torch.float32, device=x.device)
        slope_x = torch.empty_like(x)
        slope_around = None if around is None else torch.empty_like(around)
        sizes = {"ROWS": _ROWS, "BLOCK_C": _CHANNELS, "num_warps": _WARPS}
        sum_slopes[grid](
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
            AROUND=around is not None,
            **sizes,
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
            sums,
            rows,
            channels,
            grid[1],
            SHARES=triton.next_power_of_2(grid[1]),
            AROUND=around is not None,
            **sizes,
        )
        slopes = [slope_x, sums[1], sums[0], None, None, None]
        if around is not None:
            slopes[3:] = [slope_around, sums[2], sums[0]]
        return (*slopes, None, None, None, None, None, None)


apply = NormActivation.apply
