"""Depthwise convolution over time on CUDA: frames hold their channels side by side."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

_FRAMES, _CHANNELS = 64, 64
_TAPS, _FRAMES_OF_GRADIENT, _SHARES = 8, 16, 32


@triton.jit
def slide(
    x,
    weight,
    out,
    T,
    channels,
    taps,
    dilation,
    FLIP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of frames and channels: the sum over taps of shifted frames times weights."""
    frame = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    utterance = tl.program_id(2).to(tl.int64) * T * channels
    inside = channel < channels
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for tap in range(taps):
        source = frame + (tap - taps // 2) * dilation
        valid = ((source >= 0) & (source < T))[:, None] & inside[None, :]
        values = tl.load(
            x + utterance + source[:, None] * channels + channel[None, :], mask=valid, other=0.0
        )
        row = taps - 1 - tap if FLIP else tap
        factor = tl.load(weight + row * channels + channel, mask=inside, other=0.0)
        total += values.to(tl.float32) * factor.to(tl.float32)[None, :]
    place = out + utterance + frame[:, None] * channels + channel[None, :]
    tl.store(place, total, mask=(frame < T)[:, None] & inside[None, :])


@triton.jit
def correlate(
    x,
    slope,
    partial,
    batch,
    T,
    channels,
    taps,
    dilation,
    tiles,
    TAPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A few taps' share of the weights' gradient, summed over every n-th tile of frames.

    Products are added up where they are made and summed over the frames once, at the end: a sum
    over frames for each tap and tile would have the threads talk all the time.
    """
    tap = tl.program_id(0) * TAPS + tl.arange(0, TAPS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    shift = (tap - taps // 2) * dilation
    total = tl.zeros((TAPS, BLOCK_T, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(2), batch * tiles, tl.num_programs(2)):
        frame = (tile % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
        utterance = (tile // tiles).to(tl.int64) * T * channels
        slopes = tl.load(
            slope + utterance + frame[:, None] * channels + channel[None, :],
            mask=(frame < T)[:, None] & inside[None, :],
            other=0.0,
        )
        source = frame[None, :] + shift[:, None]
        valid = (source >= 0) & (source < T) & (tap < taps)[:, None]
        values = tl.load(
            x + utterance + source[:, :, None] * channels + channel[None, None, :],
            mask=valid[:, :, None] & inside[None, None, :],
            other=0.0,
        )
        total += values.to(tl.float32) * slopes.to(tl.float32)[None, :, :]
    place = partial + (tl.program_id(2) * taps + tap[:, None]) * channels + channel[None, :]
    tl.store(place, tl.sum(total, axis=1), mask=(tap < taps)[:, None] & inside[None, :])


@triton_op("interkd::depthwise", mutates_args={})
def depthwise(x: Tensor, weight: Tensor, dilation: int, flip: bool) -> Tensor:
    """`(B, T, C)` convolved with `(K, C)`, the weights reversed in time with `flip`."""
    x = x.contiguous()
    batch, frames, channels = x.shape
    out = torch.empty_like(x)
    tiles = ((frames + _FRAMES - 1) // _FRAMES, (channels + _CHANNELS - 1) // _CHANNELS, batch)
    wrap_triton(slide)[tiles](
        x,
        weight.contiguous(),
        out,
        frames,
        channels,
        weight.shape[0],
        dilation,
        FLIP=flip,
        BLOCK_T=_FRAMES,
        BLOCK_C=_CHANNELS,
    )
    return out


@triton_op("interkd::depthwise_weight_gradient", mutates_args={})
def weight_gradient(x: Tensor, slope: Tensor, taps: int, dilation: int) -> Tensor:
    """Gradient of the `(K, C)` weights, float32: frames and the output's gradient `(B, T, C)`."""
    x, slope = x.contiguous(), slope.contiguous()
    batch, frames, channels = x.shape
    partial = torch.empty(_SHARES, taps, channels, dtype=torch.float32, device=x.device)
    groups = (taps + _TAPS - 1) // _TAPS
    wrap_triton(correlate)[(groups, (channels + _CHANNELS - 1) // _CHANNELS, _SHARES)](
        x,
        slope,
        partial,
        batch,
        frames,
        channels,
        taps,
        dilation,
        (frames + _FRAMES_OF_GRADIENT - 1) // _FRAMES_OF_GRADIENT,
        TAPS=_TAPS,
        BLOCK_T=_FRAMES_OF_GRADIENT,
        BLOCK_C=_CHANNELS,
    )
    return partial.sum(0)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:  # type: ignore[type-arg]
    x, weight, ctx.dilation, ctx.flip = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(x, weight)


def _backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    dilation, flip = ctx.dilation, ctx.flip  # type: ignore[attr-defined]
    grad_x = depthwise(slope.to(x.dtype), weight, dilation, not flip)
    grad_weight = weight_gradient(x, slope, weight.shape[0], dilation)
    if flip:
        grad_weight = grad_weight.flip(0)
    return grad_x, grad_weight.to(weight.dtype), None, None


depthwise.register_autograd(_backward, setup_context=_keep)
