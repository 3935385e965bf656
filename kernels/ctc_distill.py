"""The loss of an intermediate-CTC student in one operation: CTC and divergence of every head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interkd.kernels.autograd import Losses, differentiable_losses
from interkd.kernels.backends import resolve_backend
from interkd.kernels.checks import (
    check_column,
    check_logits,
    check_targets,
    check_teacher,
    refuse_any,
)
from interkd.kernels.errors import ConfigError, ShapeError
from interkd.kernels.problem import Distillation, Problem, Transcripts
from interkd.kernels.selection import FrameSelection, select_frames
from interkd.kernels.sparse import SparsePosteriors

DIVERGENCES = ("kl", "l2")
TAILS = ("bucket", "uniform", "renormalise")


def ctc_distill_loss(
    logits: Tensor | Sequence[Tensor],
    targets: Tensor | None = None,
    frame_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
    teacher: SparsePosteriors | None = None,
    *,
    ctc_weights: Sequence[float] | None = None,
    distill_weights: Sequence[float] | None = None,
    compared_lengths: Tensor | None = None,
    selection: FrameSelection | str | Tensor = "all",
    divergence: str = "kl",
    tail: str = "bucket",
    temperature: float = 1.0,
    blank_index: int = 0,
    zero_infinity: bool = False,
    backend: str = "auto",
    check_values: bool = True,
) -> Losses:
    """`sum over heads of ctc_weight * CTC(y, q) + distill_weight * D(p, q)`, per utterance.

    `ctc_loss` and `sparse_divergence` define the two terms. Both share the softmax and one sweep
    over all heads: the logits are read once for the losses and once for the gradient, which is
    written once, in the logits' dtype, times the upstream gradient; nothing else is as large as
    the logits. H heads, B utterances, T frames, V tokens, U target tokens, N teacher frames.

    Args:
        logits: `(H, B, T, V)`, or H times `(B, T, V)`: float32, bfloat16, float16 or float64. The
            arithmetic is float32 or better.
        targets: int64 `(B, U)`; None, with both lengths, only where every CTC weight is 0.
        frame_lengths: The student's frames, int64 `(B,)`, each at most T.
        target_lengths: int64 `(B,)`, each at most U.
        teacher: Cached posteriors of the same utterances; None for no divergence.
        ctc_weights: Weight of each head's CTC loss; default 1. A term of weight 0 is not computed.
        distill_weights: Weight of each head's divergence; default 1 with a teacher.
        compared_lengths: Frames compared, int64 `(B,)`; default `frame_lengths`.
        selection: Teacher frames to compare: a `FrameSelection`, its text, or bool `(N,)`.
        divergence: `kl` or `l2`.
        tail: `bucket`, `uniform` or `renormalise`.
        temperature: Above 0, dimensionless.
        blank_index: Index of the blank.
        zero_infinity: Counts an infinite CTC loss as 0 in `total`. Its gradient is 0 in any case.
        backend: `auto` (numba on a CPU, triton 3.3 or newer on CUDA, torch elsewhere),
            `reference`, `numba`, `torch` or `triton`.
        check_values: Checks the values of lengths, targets and teacher, which on a GPU waits for
            the device. False promises that they fit: with values that do not, the result is
            undefined.

    Returns:
        `Losses`: the weighted `total` `(B,)`, which alone is differentiable, the unweighted `ctc`
        in nats and `distill` `(H, B)`, 0 where a term's weight is 0, and `impossible` `(B,)`.

    Raises:
        ShapeError: If shapes, dtypes, devices, vocabularies or values do not fit.
        ConfigError: For an unknown divergence, tail or selection, weights that are not H finite
            numbers, a temperature that is not above 0, or a term without what it needs.
        BackendError: If the backend is unknown, not installed, or cannot run on the device.

    Source: Yoon et al. 2022 (Inter-KD, arXiv 2211.15075); docs/maths.md sections 1 to 6.
    """
    if isinstance(logits, Tensor) and logits.ndim != 4:
        raise ShapeError("logits", expected="(H, B, T, V), or a sequence", got=tuple(logits.shape))
    heads = tuple(logits.unbind(0) if isinstance(logits, Tensor) else logits)
    check_logits(heads)
    name = resolve_backend(backend, heads[0].device)
    ctc_weights = _weights("ctc_weights", ctc_weights, len(heads), 1.0)
    distill_weights = _weights(
        "distill_weights", distill_weights, len(heads), 0.0 if teacher is None else 1.0
    )
    ctc_heads = tuple(h for h, weight in enumerate(ctc_weights) if weight)
    distilled_heads = tuple(h for h, weight in enumerate(distill_weights) if weight)
    compared_lengths = frame_lengths if compared_lengths is None else compared_lengths
    transcripts = distillation = None
    problems: dict[str, Any] = {}
    if ctc_heads:
        if targets is None or frame_lengths is None or target_lengths is None:
            raise ConfigError(
                "CTC", expected="targets and both lengths, or CTC weights of 0", got="None"
            )
        problems |= check_targets(
            *(heads[0], targets, frame_lengths, target_lengths, blank_index),
            check_values=check_values,
        )
        transcripts = Transcripts(
            heads=ctc_heads,
            targets=targets.contiguous(),
            frame_lengths=frame_lengths.contiguous(),
            target_lengths=target_lengths.contiguous(),
            blank_index=blank_index,
        )
    if distilled_heads:
        if teacher is None or compared_lengths is None:
            raise ConfigError(
                "divergence", expected="a teacher and compared_lengths, or weights of 0", got="None"
            )
        _check_settings(divergence, tail, temperature)
        problems |= check_teacher(heads[0], teacher, compared_lengths, check_values=check_values)
    refuse_any(problems)
    if distilled_heads and teacher is not None and compared_lengths is not None:
        distillation = Distillation(
            heads=distilled_heads,
            teacher=teacher.contiguous(),
            compared_lengths=compared_lengths.contiguous(),
            selected=_selected(heads[0], teacher, selection),
            divergence=divergence,
            tail=tail,
            temperature=float(temperature),
        )
    problem = Problem(
        transcripts=transcripts,
        distillation=distillation,
        ctc_weights=ctc_weights,
        distill_weights=distill_weights,
        zero_infinity=zero_infinity,
    )
    return differentiable_losses(logits if isinstance(logits, Tensor) else heads, problem, name)


def _check_settings(divergence: str, tail: str, temperature: float) -> None:
    for key, value, known in (("divergence", divergence, DIVERGENCES), ("tail", tail, TAILS)):
        if value not in known:
            raise ConfigError(f"unknown {key}", expected=" | ".join(known), got=repr(value))
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError("temperature", expected="a number above 0", got=temperature)


def _selected(
    logits: Tensor, teacher: SparsePosteriors, selection: FrameSelection | str | Tensor
) -> Tensor | None:
    if isinstance(selection, str):
        selection = FrameSelection.parse(selection)
    if isinstance(selection, FrameSelection):
        return None if selection.kind == "all" else select_frames(teacher, selection)
    check_column("selected", selection, (len(teacher.entry_offsets) - 1,), torch.bool, logits)
    return selection.contiguous()


def _weights(
    name: str, weights: Sequence[float] | None, heads: int, default: float
) -> tuple[float, ...]:
    values = (default,) * heads if weights is None else tuple(float(weight) for weight in weights)
    if len(values) != heads or not all(math.isfinite(weight) for weight in values):
        raise ConfigError(name, expected=f"{heads} finite numbers, one a head", got=list(values))
    return values
