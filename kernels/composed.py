"""The fused loss made of a backend's two halves, each with its whole gradient: plain, not fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interkd.kernels.autograd import Losses
from interkd.kernels.problem import Problem
from interkd.kernels.weighting import term_scales, weighted

Half = Callable[..., tuple[Tensor, Tensor]]


def composed_losses(
    ctc: Half, divergence: Half, logits: tuple[Tensor, ...], problem: Problem
) -> tuple[Losses, tuple[Tensor, ...]]:
    """The losses and, as state behind them, the gradient of every term.

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
    result = weighted(losses[0], losses[1], problem)
    return result, (result.ctc, result.distill, *state)


def composed_gradients(
    logits: tuple[Tensor, ...],
    problem: Problem,
    state: tuple[Tensor, ...],
    upstream: Tensor,
    out: tuple[Tensor, ...],
) -> None:
    """Writes the gradient to `out`, `(B, T, V)` a head."""
    ctc, distill, *gradients = state
    scales = term_scales(problem, ctc, distill, upstream)
    terms = iter(gradients)
    sums: list[Tensor | None] = [None] * len(logits)
    for kind, half in enumerate((problem.transcripts, problem.distillation)):
        for head in half.heads if half else ():
            gradient = next(terms)
            term = gradient * scales[kind, head].to(gradient.dtype)[:, None, None]
            so_far = sums[head]
            sums[head] = term if so_far is None else so_far + term
    for total, target in zip(sums, out, strict=True):
        # Scaled before the cast, so that a float16 loss scale reaches float16's range.
        target.zero_() if total is None else target.copy_(total)
