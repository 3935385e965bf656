"""Norm, way around a block, ReLU, dropout and mask in two passes each way, on CUDA."""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from interkd.kernels._triton.norm_backward import slopes_of_inputs, sum_slopes
from interkd.kernels._triton.norm_forward import activate, moments
from interkd.kernels.norm_activation import Running

_CHANNELS = 64  # bfloat16: a whole line of memory
_ROWS = 16  # four times: rows of a tile that is written
_ROWS_OF_SUMS = 128
_PROGRAMS = 528  # four for each multiprocessor of an H100 or H200
_SHARES = 32  # of a sum: each program that needs it adds them up


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
