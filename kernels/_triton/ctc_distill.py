"""The fused loss on CUDA: two passes over the logits and one lattice sweep for all heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
import triton
from torch import Tensor

from interkd.kernels._triton.frame_gradients import frame_gradients
from interkd.kernels._triton.frame_losses import frame_losses
from interkd.kernels._triton.lattice import sweep_halves, sweep_occupancies
from interkd.kernels._triton.prepare import combine, prepare
from interkd.kernels.autograd import Losses
from interkd.kernels.precision import shifted_float32
from interkd.kernels.problem import Distillation, Problem, Transcripts
from interkd.kernels.weighting import weights_on

P = ParamSpec("P")
R = TypeVar("R")

_TAILS = {"bucket": 0, "uniform": 1, "renormalise": 2}
_HEADS_AT_ONCE = 4  # a launch names so many tensors
_KEPT_AT_ONCE = 16


class _State(NamedTuple):
    """What the gradient needs beside the logits.

    Attributes:
        frames: Peak, inverse total and the blank's probability, float32 `(H, B, T, 4)`.
        teacher_frames: float32 `(H, B, T, 4)`, see `frame_gradients`.
        slopes: Gradient of the divergence on the kept logits, float32 `(H, E)`.
        occupancy: Of each slot, int32 `(H, B, T, U)`.
        slot_of: Slot of every token, -1 for none, int32 `(B, V)`.
        slots: Slot of each target, int32 `(B, U)`.
        ctc: Losses, float32 `(H, B)`.
        distill: Losses, float32 `(H, B)`.
    """

    frames: Tensor
    teacher_frames: Tensor
    slopes: Tensor
    occupancy: Tensor
    slot_of: Tensor
    slots: Tensor
    ctc: Tensor
    distill: Tensor


def _on_its_device(function: Callable[P, R]) -> Callable[P, R]:
    """Launches on the logits' device, which need not be the current one."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        logits = cast("tuple[Tensor, ...]", args[0])
        with torch.cuda.device_of(logits[0]):  # type: ignore[no-untyped-call]
            return function(*args, **kwargs)

    return wrapped


@_on_its_device
def losses(
    logits: tuple[Tensor, ...], problem: Problem, with_gradient: bool
) -> tuple[Losses, tuple[Tensor, ...]]:
    """The losses, and what `gradients` needs beside the logits."""
    heads, (batch, frames, vocab_size) = len(logits), logits[0].shape
    half, kd = problem.transcripts, problem.distillation
    device = logits[0].device

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    width = half.targets.shape[1] if half else 0
    entries = len(kd.teacher.tokens) if kd else 0
    teacher_length = len(kd.teacher.entry_offsets) - 1 if kd else 0
    state = _State(
        frames=empty(heads, batch, frames, 4),
        teacher_frames=empty(heads if kd else 0, batch, frames, 4),
        slopes=empty(heads if kd else 0, entries),
        occupancy=empty(heads if half else 0, batch, frames, width, dtype=torch.int32),
        slot_of=empty(batch if half else 0, vocab_size, dtype=torch.int32),
        slots=empty(batch if half else 0, width, dtype=torch.int32),
        ctc=empty(heads, batch),
        distill=empty(heads, batch),
    )
    result = Losses(empty(batch), state.ctc, state.distill, empty(batch, dtype=torch.bool))
    if not batch:
        return result, tuple(state)
    probs, rests = empty(2, entries), empty(2, teacher_length)
    targets = half.targets if half else None
    lengths = (half.frame_lengths, half.target_lengths) if half else (None, None)
    block, tuning = _frame_block(vocab_size)
    asked = {"CTC": half is not None, "DISTILL": kd is not None}
    temperature = kd.temperature if kd else 1.0
    columns = _columns(kd)
    prepare[(max(batch if half else 0, teacher_length, 1),)](
        *(targets, lengths[1], state.slot_of, state.slots),
        *(columns["entry_offsets"], kd.teacher.log_probs if kd else None, probs, rests),
        *(batch, width, teacher_length, entries, vocab_size, temperature),
        **asked,
        TAIL=_settings(kd)["TAIL"],
        BLOCK=block,
        BLOCK_U=triton.next_power_of_2(max(width, 1)),
        BLOCK_K=_KEPT_AT_ONCE,
        num_warps=1,
    )
    label_logits = empty(heads if half else 0, batch, frames, width)
    divergence = empty(heads if kd else 0, batch, frames)
    for first in range(0, heads if frames else 0, _HEADS_AT_ONCE):
        group = [_rows(head) for head in logits[first : first + _HEADS_AT_ONCE]]
        offsets, aligned = _offsets(group)
        frame_losses[(frames, batch, len(group))](
            *(group[0], *offsets, targets, *lengths),
            **columns,
            probs=probs,
            rests=rests,
            frames=state.frames,
            label_logits=label_logits,
            occupancy=state.occupancy,
            teacher_frames=state.teacher_frames,
            slopes=state.slopes,
            divergence=divergence,
            batch=batch,
            T=frames,
            vocab_size=vocab_size,
            width=width,
            teacher_length=teacher_length,
            entries=entries,
            blank=half.blank_index if half else 0,
            temperature=temperature,
            first_head=first,
            **_bits(problem),
            **asked,
            **_settings(kd),
            TAU=temperature != 1.0,
            WITH_GRADIENT=with_gradient,
            ALIGNED=aligned,
            ONE_BLOCK=block >= vocab_size,
            BLOCK=block,
            BLOCK_U=triton.next_power_of_2(max(width, 1)),
            BLOCK_K=_KEPT_AT_ONCE,
            **tuning,
        )
    ctc_losses = _sweep(half, state, label_logits, with_gradient) if half else None
    combine[(batch,)](
        *(ctc_losses if half else state.ctc, divergence if kd else state.distill),
        weights_on(device, problem),
        *result,
        *(batch, frames if kd else 0, *_bits(problem).values()),
        ZERO_INFINITY=problem.zero_infinity,
        HEADS=heads,
        BLOCK=256,
        num_warps=1,
    )
    return result, tuple(state) if with_gradient else ()


@_on_its_device
def gradients(
    logits: tuple[Tensor, ...],
    problem: Problem,
    state: tuple[Tensor, ...],
    upstream: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    """Writes the gradient to `out`."""
    batch, frames, vocab_size = logits[0].shape
    half, kd = problem.transcripts, problem.distillation
    parts = _State(*state)
    if not out[0].numel():
        return
    block, tuning = _gradient_block(vocab_size)
    columns = _columns(kd)
    lengths = (half.frame_lengths, half.target_lengths) if half else (None, None)
    for first in range(0, len(logits), _HEADS_AT_ONCE):
        heads = slice(first, first + _HEADS_AT_ONCE)
        group = [_rows(head) for head in logits[heads]]
        offsets, aligned = _offsets(group)
        out_offsets, out_aligned = _offsets(out[heads])
        frame_gradients[(frames, batch, len(group))](
            *(group[0], *offsets, out[first], *out_offsets),
            *((half.targets, *lengths) if half else (None, *lengths)),
            **columns,
            frames=parts.frames,
            slot_of=parts.slot_of,
            slots=parts.slots,
            occupancy=parts.occupancy,
            teacher_frames=parts.teacher_frames,
            slopes=parts.slopes,
            weights=weights_on(upstream.device, problem),
            upstream=upstream.contiguous(),
            ctc=parts.ctc,
            distill=parts.distill,
            batch=batch,
            T=frames,
            vocab_size=vocab_size,
            width=parts.occupancy.shape[3],
            entries=parts.slopes.shape[1],
            blank=half.blank_index if half else 0,
            temperature=kd.temperature if kd else 1.0,
            first_head=first,
            all_heads=len(logits),
            **_bits(problem),
            CTC=half is not None,
            DISTILL=kd is not None,
            **_settings(kd),
            ALIGNED=aligned and out_aligned,
            BLOCK=block,
            BLOCK_U=triton.next_power_of_2(max(parts.occupancy.shape[3], 1)),
            BLOCK_K=_KEPT_AT_ONCE,
            **tuning,
        )


def _sweep(half: Transcripts, state: _State, label_logits: Tensor, with_gradient: bool) -> Tensor:
    """CTC loss `(H, B)`; adds up the occupancies."""
    heads, batch, frames, width = label_logits.shape
    block = max(32, triton.next_power_of_2(width + 1))
    kept = torch.empty((2, *label_logits.shape), device=label_logits.device)
    carry = torch.empty((heads, batch, 2, 4, block), device=label_logits.device)
    loss = torch.empty((heads, batch), device=label_logits.device)
    mask = sum(1 << head for head in half.heads)
    shared = (
        *(state.frames, label_logits, half.targets),
        *(half.frame_lengths, half.target_lengths, kept[0], kept[1], carry),
    )
    sizes = (batch, frames, width, mask)
    grid, options = (heads * batch, 2), {"BLOCK": block, "num_warps": _sweep_warps(block)}
    sweep_halves[grid](*shared, *sizes, **options)
    sweep_occupancies[grid](
        *(*shared, state.slots, state.occupancy, loss, *sizes),
        WITH_OCCUPANCY=with_gradient,
        **options,
    )
    return loss


def _offsets(heads: list[Tensor] | tuple[Tensor, ...]) -> tuple[tuple[int, ...], bool]:
    """Elements from the first tensor to the three others, and whether all are multiples of 16."""
    start, size = heads[0].data_ptr(), heads[0].element_size()
    offsets = [(head.data_ptr() - start) // size for head in heads[1:]]
    offsets += [0] * (_HEADS_AT_ONCE - 1 - len(offsets))
    return tuple(offsets), all(offset % 16 == 0 for offset in offsets)


def _rows(logits: Tensor) -> Tensor:
    """Logits as all heads have them: contiguous, float32 or shorter."""
    logits = shifted_float32(logits) if logits.dtype == torch.float64 else logits
    return logits.contiguous()


def _columns(kd: Distillation | None) -> dict[str, Tensor | None]:
    if kd is None:
        names = ("compared_lengths", "frame_offsets", "entry_offsets", "tokens", "selected")
        return dict.fromkeys(names)
    return {
        "compared_lengths": kd.compared_lengths,
        "frame_offsets": kd.teacher.frame_offsets,
        "entry_offsets": kd.teacher.entry_offsets,
        "tokens": kd.teacher.tokens,
        "selected": kd.selected,
    }


def _bits(problem: Problem) -> dict[str, int]:
    """Heads of each kind of term as the bits of an integer."""
    half, kd = problem.transcripts, problem.distillation
    return {
        "ctc_heads": sum(1 << head for head in half.heads) if half else 0,
        "distilled_heads": sum(1 << head for head in kd.heads) if kd else 0,
    }


def _settings(kd: Distillation | None) -> dict[str, Any]:
    return {
        "SELECTED": kd is not None and kd.selected is not None,
        "SQUARED": kd is not None and kd.divergence == "l2",
        "TAIL": _TAILS[kd.tail] if kd else 2,
    }


def _frame_block(vocab_size: int) -> tuple[int, dict[str, int]]:
    """Tokens that `frame_losses` takes at once, and how it is compiled; measured, docs/log.md."""
    if vocab_size <= 2048:
        return min(triton.next_power_of_2(vocab_size), 1024), {"num_warps": 1, "maxnreg": 80}
    return 512, {"num_warps": 4}


def _gradient_block(vocab_size: int) -> tuple[int, dict[str, int]]:
    """Likewise of `frame_gradients`."""
    if vocab_size <= 512:
        return triton.next_power_of_2(vocab_size), {"num_warps": 1, "maxnreg": 64}
    if vocab_size <= 2048:
        return 1024, {"num_warps": 2}
    return 2048, {"num_warps": 8}


def _sweep_warps(block: int) -> int:
    return min(max(block // 32, 1), 16)
