"""Depthwise convolution over time on CUDA: frames hold their channels side by side."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

_FRAMES_AT_ONCE = 4  # of `slide`, as its body has them
_TAPS_AT_ONCE = 8  # of `correlate`, as its body has them
_CHANNELS, _LANES_OF_SLIDE, _LANES_OF_CORRELATE = 64, 16, 8
_STEPS = 33  # with the taps' seven, a multiple of what is unrolled
_MOST_SHARES = 128


@triton.jit(do_not_specialize=["T"])
def slide(
    x,
    weight,
    out,
    T,
    channels,
    taps,
    dilation,
    FLIP: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sum over taps of shifted frames times weights, of four frames a lane.

    A lane's frames are `dilation` apart, so that what is loaded for one is the next tap's of the
    frame before: each frame is loaded once for the four, not once a tap.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    first = lane // dilation * (4 * dilation) + lane % dilation
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    utterance = tl.program_id(2).to(tl.int64) * T * channels
    inside = channel < channels
    total0 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total1 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total2 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total3 = tl.zeros((LANES, BLOCK_C), tl.float32)
    factor0 = tl.zeros((LANES, BLOCK_C), tl.float32)
    factor1 = tl.zeros((LANES, BLOCK_C), tl.float32)
    factor2 = tl.zeros((LANES, BLOCK_C), tl.float32)
    for step in tl.range(0, taps + 3, loop_unroll_factor=4):
        source = first + (step - taps // 2) * dilation
        valid = ((source >= 0) & (source < T))[:, None] & inside[None, :]
        place = x + utterance + source[:, None] * channels + channel[None, :]
        values = tl.load(place, mask=valid, other=0.0).to(tl.float32)
        row = taps - 1 - step if FLIP else step
        # As many factors as values: of each channel once, threads would wait to hand them on.
        place = tl.broadcast_to(weight + row * channels + channel[None, :], (LANES, BLOCK_C))
        valid = tl.broadcast_to((inside & (step < taps))[None, :], (LANES, BLOCK_C))
        factor = tl.load(place, mask=valid, other=0.0).to(tl.float32)
        total0 += values * factor
        total1 += values * factor0
        total2 += values * factor1
        total3 += values * factor2
        factor2 = factor1
        factor1 = factor0
        factor0 = factor
    place = out + utterance + first[:, None] * channels + channel[None, :]
    step_size = dilation * channels
    is_channel = inside[None, :]
    tl.store(place, total0, mask=(first < T)[:, None] & is_channel)
    tl.store(place + step_size, total1, mask=(first + dilation < T)[:, None] & is_channel)
    tl.store(place + 2 * step_size, total2, mask=(first + 2 * dilation < T)[:, None] & is_channel)
    tl.store(place + 3 * step_size, total3, mask=(first + 3 * dilation < T)[:, None] & is_channel)


@triton.jit(do_not_specialize=["batch", "T", "lanes"])
def correlate(
    x,
    slope,
    partial,
    batch,
    T,
    channels,
    taps,
    dilation,
    lanes,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Eight taps' share of the weights' gradient, summed over every n-th tile of lanes.

    A lane goes through `STEPS` frames, `dilation` apart, and remembers the last eight slopes: a
    frame and a slope are loaded for eight products. An utterance has `lanes`; a tile's may be of
    two. They are summed once, at the end: before that threads have nothing to tell each other.
    """
    tap = tl.program_id(0) * 8
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    total0 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total1 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total2 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total3 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total4 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total5 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total6 = tl.zeros((LANES, BLOCK_C), tl.float32)
    total7 = tl.zeros((LANES, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(2), tl.cdiv(batch * lanes, LANES), tl.num_programs(2)):
        lane = tile * LANES + tl.arange(0, LANES)
        is_there = lane < batch * lanes
        utterance = (lane // lanes).to(tl.int64)[:, None] * T * channels
        lane = lane % lanes
        first = lane // dilation * (STEPS * dilation) + lane % dilation
        slope1 = tl.zeros((LANES, BLOCK_C), tl.float32)
        slope2 = tl.zeros((LANES, BLOCK_C), tl.float32)
        slope3 = tl.zeros((LANES, BLOCK_C), tl.float32)
        slope4 = tl.zeros((LANES, BLOCK_C), tl.float32)
        slope5 = tl.zeros((LANES, BLOCK_C), tl.float32)
        slope6 = tl.zeros((LANES, BLOCK_C), tl.float32)
        slope7 = tl.zeros((LANES, BLOCK_C), tl.float32)
        for step in tl.range(0, STEPS + 7, loop_unroll_factor=8):
            frame = first + step * dilation
            valid = (is_there & (step < STEPS) & (frame < T))[:, None] & inside[None, :]
            place = slope + utterance + frame[:, None] * channels + channel[None, :]
            slope0 = tl.load(place, mask=valid, other=0.0).to(tl.float32)
            source = frame + (tap - taps // 2) * dilation
            valid = (is_there & (source >= 0) & (source < T))[:, None] & inside[None, :]
            place = x + utterance + source[:, None] * channels + channel[None, :]
            value = tl.load(place, mask=valid, other=0.0).to(tl.float32)
            total0 += value * slope0
            total1 += value * slope1
            total2 += value * slope2
            total3 += value * slope3
            total4 += value * slope4
            total5 += value * slope5
            total6 += value * slope6
            total7 += value * slope7
            slope7 = slope6
            slope6 = slope5
            slope5 = slope4
            slope4 = slope3
            slope3 = slope2
            slope2 = slope1
            slope1 = slope0
    place = partial + (tl.program_id(2) * taps + tap) * channels + channel
    tl.store(place, tl.sum(total0, axis=0), mask=inside)
    tl.store(place + channels, tl.sum(total1, axis=0), mask=inside & (tap + 1 < taps))
    tl.store(place + 2 * channels, tl.sum(total2, axis=0), mask=inside & (tap + 2 < taps))
    tl.store(place + 3 * channels, tl.sum(total3, axis=0), mask=inside & (tap + 3 < taps))
    tl.store(place + 4 * channels, tl.sum(total4, axis=0), mask=inside & (tap + 4 < taps))
    tl.store(place + 5 * channels, tl.sum(total5, axis=0), mask=inside & (tap + 5 < taps))
    tl.store(place + 6 * channels, tl.sum(total6, axis=0), mask=inside & (tap + 6 < taps))
    tl.store(place + 7 * channels, tl.sum(total7, axis=0), mask=inside & (tap + 7 < taps))


def _parts(whole: int, part: int) -> int:
    return (whole + part - 1) // part


@triton_op("interkd::depthwise", mutates_args={})
def depthwise(x: Tensor, weight: Tensor, dilation: int, flip: bool) -> Tensor:
    """`(B, T, C)` convolved with `(K, C)`, the weights reversed in time with `flip`."""
    x = x.contiguous()
    batch, frames, channels = x.shape
    out = torch.empty_like(x)
    lanes = _parts(frames, _FRAMES_AT_ONCE * dilation) * dilation
    wrap_triton(slide)[(_parts(lanes, _LANES_OF_SLIDE), _parts(channels, _CHANNELS), batch)](
        x,
        weight.contiguous(),
        out,
        frames,
        channels,
        weight.shape[0],
        dilation,
        FLIP=flip,
        LANES=_LANES_OF_SLIDE,
        BLOCK_C=_CHANNELS,
    )
    return out


@triton_op("interkd::depthwise_weight_gradient", mutates_args={})
def weight_gradient(x: Tensor, slope: Tensor, taps: int, dilation: int) -> Tensor:
    """Gradient of the `(K, C)` weights, float32: frames and the output's gradient `(B, T, C)`."""
    x, slope = x.contiguous(), slope.contiguous()
    batch, frames, channels = x.shape
    lanes = _parts(frames, _STEPS * dilation) * dilation
    tiles = _parts(batch * lanes, _LANES_OF_CORRELATE)
    shares = _parts(tiles, _parts(tiles, _MOST_SHARES))  # each has as much to do
    partial = torch.empty(shares, taps, channels, dtype=torch.float32, device=x.device)
    wrap_triton(correlate)[(_parts(taps, _TAPS_AT_ONCE), _parts(channels, _CHANNELS), shares)](
        x,
        slope,
        partial,
        batch,
        frames,
        channels,
        taps,
        dilation,
        lanes,
        STEPS=_STEPS,
        LANES=_LANES_OF_CORRELATE,
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
