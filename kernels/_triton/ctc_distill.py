"""The fused loss on CUDA: two passes over the logits and one lattice sweep for all heads."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from interkd.kernels._triton.frames import frame_gradients, frame_losses
from interkd.kernels._triton.lattice import sweep_halves, sweep_occupancies
from interkd.kernels.precision import shifted_float32
from interkd.kernels.problem import Distillation, Problem, Transcripts

_TAILS = {"bucket": 0, "uniform": 1, "renormalise": 2}
_WIDEST_BLOCK = 8192
_KEPT_AT_ONCE = 16


class _State(NamedTuple):
    """What the gradient needs beside the logits; C heads have a CTC loss.

    Attributes:
        frames: Peak, inverse total and blank logit, float32 `(C + 1, B, T, 4)`; the last is that
            of the heads without a CTC loss, which nothing reads.
        teacher_frames: float32 `(H, B, T, 4)`, see `frame_gradients`.
        slopes: Gradient of the divergence on the kept logits, float32 `(H, E)`.
        occupancy: Of each slot, int32 `(C, B, T, U)`.
        slot_of: Slot of every token, -1 for none, int32 `(B, V)`.
    """

    frames: Tensor
    teacher_frames: Tensor
    slopes: Tensor
    occupancy: Tensor
    slot_of: Tensor


def losses(
    logits: tuple[Tensor, ...], problem: Problem, with_gradient: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Losses `(H, B)` of both kinds, and what `gradients` needs beside the logits."""
    heads, (batch, frames, vocab_size) = len(logits), logits[0].shape
    half, kd = problem.transcripts, problem.distillation
    ctc_heads = half.heads if half else ()
    width = half.targets.shape[1] if half else 0

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=logits[0].device)

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=logits[0].device)

    distilled = heads if kd else 0
    slot_of, slots = _slots(half, vocab_size) if half else (zeros(0), zeros(0))
    state = _State(
        frames=floats(len(ctc_heads) + 1, batch, frames, 4),
        teacher_frames=floats(distilled, batch, frames, 4),
        slopes=floats(distilled, len(kd.teacher.tokens) if kd else 0),
        occupancy=zeros(
            len(ctc_heads), batch, frames, width if with_gradient else 0, dtype=torch.int32
        ),
        slot_of=slot_of,
    )
    label_logits = floats(len(ctc_heads), batch, frames, width)
    divergence = zeros(heads, batch, frames if kd else 0)
    ctc = zeros(heads, batch)
    for head, head_logits in enumerate(logits):
        if batch and frames:
            _frame_losses(head, head_logits, problem, state, label_logits, divergence)
    if half and batch:
        ctc_loss = _sweep(half, state, label_logits, slots, with_gradient)
        ctc = ctc_loss if len(ctc_heads) == heads else ctc
        if len(ctc_heads) < heads:
            for place, head in enumerate(ctc_heads):
                ctc[head] = ctc_loss[place]
    return ctc, divergence.sum(2, dtype=torch.float64), tuple(state) if with_gradient else ()


def gradients(
    logits: tuple[Tensor, ...],
    problem: Problem,
    state: tuple[Tensor, ...],
    ctc_scales: Tensor,
    distill_scales: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    """Writes the gradient, each term times its scale `(H, B)`, to `out`."""
    batch, frames, vocab_size = logits[0].shape
    half, kd = problem.transcripts, problem.distillation
    parts = _State(*state)
    width = parts.occupancy.shape[3]
    for head, (head_logits, target) in enumerate(zip(logits, out, strict=True)):
        if not target.numel():
            continue
        values = _rows(head_logits)
        place, in_ctc, distils = _roles(head, problem)
        block = min(triton.next_power_of_2(vocab_size), _WIDEST_BLOCK)
        frame_gradients[(frames, batch)](
            values,
            values.stride(0),
            values.stride(1),
            target,
            half.frame_lengths if half else None,
            *_teacher(kd)[:4],
            kd.selected if kd else None,
            parts.frames[place],
            parts.slot_of,
            parts.occupancy[place] if in_ctc else None,
            parts.teacher_frames[head] if distils else None,
            parts.slopes[head] if distils else None,
            ctc_scales[head],
            distill_scales[head],
            frames,
            vocab_size,
            width,
            half.blank_index if half else 0,
            kd.temperature if kd else 1.0,
            CTC=in_ctc,
            DISTILL=distils,
            **_settings(kd),
            BLOCK=block,
            BLOCK_U=triton.next_power_of_2(max(width, 1)),
            num_warps=_warps(block),
        )


def _frame_losses(
    head: int,
    logits: Tensor,
    problem: Problem,
    state: _State,
    label_logits: Tensor,
    divergence: Tensor,
) -> None:
    batch, frames, vocab_size = logits.shape
    half, kd = problem.transcripts, problem.distillation
    values = _rows(logits)
    place, in_ctc, distils = _roles(head, problem)
    if not (in_ctc or distils):
        return
    width = label_logits.shape[3]
    block = min(triton.next_power_of_2(vocab_size), _WIDEST_BLOCK)
    teacher = _teacher(kd)
    frame_losses[(frames, batch)](
        values,
        values.stride(0),
        values.stride(1),
        half.targets.contiguous() if half else None,
        half.frame_lengths if half else None,
        half.target_lengths if half else None,
        *teacher,
        kd.selected if kd else None,
        state.frames[place],
        label_logits[place] if in_ctc else None,
        state.teacher_frames[head] if distils else None,
        state.slopes[head] if distils else None,
        divergence[head] if distils else None,
        frames,
        vocab_size,
        width,
        half.blank_index if half else 0,
        kd.temperature if kd else 1.0,
        CTC=in_ctc,
        DISTILL=distils,
        **_settings(kd),
        TAU=kd is not None and kd.temperature != 1.0,
        ONE_BLOCK=block >= vocab_size,
        BLOCK=block,
        BLOCK_U=triton.next_power_of_2(max(width, 1)),
        BLOCK_K=_KEPT_AT_ONCE,
        num_warps=_warps(block),
    )


def _sweep(
    half: Transcripts, state: _State, label_logits: Tensor, slots: Tensor, with_gradient: bool
) -> Tensor:
    """Loss `(C, B)` of the heads with CTC; adds up the occupancies."""
    heads, batch, frames, width = label_logits.shape
    block = max(32, triton.next_power_of_2(width + 1))
    kept = torch.empty(2, *label_logits.shape, device=label_logits.device)
    carry = torch.empty(heads, batch, 2, 4, block, device=label_logits.device)
    loss = torch.empty(heads, batch, device=label_logits.device)
    shared = (
        state.frames,
        label_logits,
        half.targets.contiguous(),
        half.frame_lengths,
        half.target_lengths,
        kept[0],
        kept[1],
        carry,
    )
    sizes = (batch, frames, width)
    grid, options = (heads * batch, 2), {"BLOCK": block, "num_warps": _sweep_warps(block)}
    sweep_halves[grid](*shared, *sizes, **options)
    sweep_occupancies[grid](
        *shared,
        slots,
        state.occupancy,
        loss,
        *sizes,
        WITH_OCCUPANCY=with_gradient,
        **options,
    )
    return loss


def _slots(half: Transcripts, vocab_size: int) -> tuple[Tensor, Tensor]:
    """One slot for all places of a token: of every token `(B, V)`, and of the targets `(B, U)`."""
    batch, width = half.targets.shape
    device = half.targets.device
    place = torch.arange(width, dtype=torch.int32, device=device)
    inside = place < half.target_lengths[:, None]
    tokens = half.targets.masked_fill(~inside, 0)
    slot_of = torch.full((batch, vocab_size), -1, dtype=torch.int32, device=device)
    # The last place is the slot: a maximum, unlike a plain scatter, is the same in any order.
    slot_of.scatter_reduce_(1, tokens, place.expand(batch, -1).masked_fill(~inside, -1), "amax")
    return slot_of, slot_of.gather(1, tokens)


def _roles(head: int, problem: Problem) -> tuple[int, bool, bool]:
    """Place among the heads with CTC (or the spare one), and which terms the head has."""
    half, kd = problem.transcripts, problem.distillation
    in_ctc = half is not None and head in half.heads
    place = half.heads.index(head) if half and in_ctc else len(half.heads) if half else 0
    return place, in_ctc, kd is not None and head in kd.heads


def _rows(logits: Tensor) -> Tensor:
    """Logits whose last dimension is contiguous, float32 or shorter."""
    logits = shifted_float32(logits) if logits.dtype == torch.float64 else logits
    return logits if logits.stride(2) == 1 else logits.contiguous()


def _teacher(kd: Distillation | None) -> tuple[Tensor | None, ...]:
    if kd is None:
        return (None,) * 5
    columns = kd.teacher
    return (
        kd.compared_lengths,
        columns.frame_offsets,
        columns.entry_offsets,
        columns.tokens,
        columns.log_probs,
    )


def _settings(kd: Distillation | None) -> dict[str, bool | int]:
    return {
        "SELECTED": kd is not None and kd.selected is not None,
        "SQUARED": kd is not None and kd.divergence == "l2",
        "TAIL": _TAILS[kd.tail] if kd else 2,
    }


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 8)


def _sweep_warps(block: int) -> int:
    return min(max(block // 32, 1), 4)
