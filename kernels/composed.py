"""The fused loss made of a backend's two halves, each with its whole gradient: plain, not fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interkd.kernels.problem import Problem

Half = Callable[..., tuple[Tensor, Tensor]]


def composed_losses(
    ctc: Half, divergence: Half, logits: tuple[Tensor, ...], problem: Problem
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Losses `(H, B)` of both kinds and, as state, the gradient of every term.

    Args:
        ctc: Maps logits and transcripts to loss `(B,)` and gradient `(B, T, V)`.
        divergence: Maps logits and the teacher to the same.
        logits: `(B, T, V)` a head.
        problem: What to compute.
    """
    losses = torch.zeros(2, len(logits), len(logits[0]), dtype=torch.float64)
    losses = losses.to(logits[0].device)
    state = []
    if half := problem.transcripts:
        for head in half.heads:
            losses[0, head], gradient = ctc(
                logits[head],
                half.targets,
                half.frame_lengths,
                half.target_lengths,
                half.blank_index,
            )
            # torch's gradient is NaN where no alignment exists.
            state.append(gradient.masked_fill_(losses[0, head].isinf()[:, None, None], 0))
    if kd := problem.distillation:
        selected = kd.selected
        if selected is None:
            frames = len(kd.teacher.entry_offsets) - 1
            selected = torch.ones(frames, dtype=torch.bool, device=kd.teacher.tokens.device)
        for head in kd.heads:
            losses[1, head], gradient = divergence(
                logits[head],
                kd.teacher,
                kd.compared_lengths,
                selected,
                kd.divergence,
                kd.tail,
                kd.temperature,
            )
            state.append(gradient.masked_fill_(losses[1, head].isinf()[:, None, None], 0))
    return losses[0], losses[1], tuple(state)


def composed_gradients(
    logits: tuple[Tensor, ...],
    problem: Problem,
    state: tuple[Tensor, ...],
    ctc_scales: Tensor,
    distill_scales: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    """Writes the terms' gradients times their scales `(H, B)` to `out`, `(B, T, V)` a head."""
    terms = iter(state)
    sums: list[Tensor | None] = [None] * len(logits)
    for half, scales in (
        (problem.transcripts, ctc_scales),
        (problem.distillation, distill_scales),
    ):
        for head in half.heads if half else ():
            gradient = next(terms)
            term = gradient * scales[head].to(gradient.dtype)[:, None, None]
            so_far = sums[head]
            sums[head] = term if so_far is None else so_far + term
    for total, target in zip(sums, out, strict=True):
        # Scaled before the cast, so that a float16 loss scale reaches float16's range.
        target.zero_() if total is None else target.copy_(total)
