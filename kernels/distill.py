"""Divergence of a student head from a cached sparse teacher, per utterance, from logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interkd.kernels.backends import (
    LossAndGradient,
    check_column,
    check_logits,
    differentiable_loss,
    load_kernel,
    refuse_any,
    resolve_backend,
)
from interkd.kernels.errors import ConfigError, ShapeError
from interkd.kernels.sparse import SparsePosteriors

DIVERGENCES = ("kl", "l2")
TAILS = ("bucket", "uniform", "renormalise")


def sparse_divergence(
    logits: Tensor,
    teacher: SparsePosteriors,
    frame_lengths: Tensor,
    *,
    divergence: str = "kl",
    tail: str = "bucket",
    selected: Tensor | None = None,
    temperature: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Divergence between teacher and student, summed over the selected frames of an utterance.

    Each frame is a distribution over classes, p for the teacher and q for the student: `kl` is
    `sum p (log p - log q)` in nats, `l2` is `sum (p - q)^2`, both exactly zero where p equals q.
    The tail convention says what the classes are, on both sides. `bucket`: the kept tokens and
    one class with the mass of all others. `uniform`: all V tokens, the teacher's tail mass spread
    evenly over those not kept. `renormalise`: the kept tokens, both sides renormalised over them.
    A temperature tau softens the classes of both sides, `p^(1/tau)` renormalised; no tau^2 factor
    is applied. B utterances, T frames, V tokens, N teacher frames; softmax is inside.

    Args:
        logits: float32, bfloat16, float16 or float64 `(B, T, V)`; the arithmetic is float32 or
            better, the gradient has the logits' dtype.
        teacher: Cached posteriors of the same B utterances over the same V tokens.
        frame_lengths: Frames compared, from the first of both sides, int64 `(B,)`, each at most T
            and at most the teacher's frames. Frames beyond are never read, their gradient is 0.
        divergence: `kl` or `l2`.
        tail: `bucket`, `uniform` or `renormalise`.
        selected: Teacher frames to compare, bool `(N,)`; None for all of them.
        temperature: Above 0, dimensionless.
        backend: `auto` (numba on a CPU, torch elsewhere), `reference`, `numba` or `torch`.

    Returns:
        float32 `(B,)`: 0 for an utterance without selected frames; `inf` (with an exactly zero
        gradient) where the student gives a class of the teacher probability 0.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, the vocabularies differ, or a length,
            an offset or a token is out of range.
        ConfigError: For an unknown divergence or tail, or a temperature that is not above 0.
        BackendError: If the backend is unknown or cannot run on the logits' device.

    Source: Hinton et al. 2015, eq. 2 (kl); Yoon et al. 2022, arXiv 2211.15075 (l2); docs/maths.md
    sections 2 to 5.
    """
    check_logits(logits)
    name = resolve_backend(backend, logits.device)
    for key, value, known in (("divergence", divergence, DIVERGENCES), ("tail", tail, TAILS)):
        if value not in known:
            raise ConfigError(f"unknown {key}", expected=" | ".join(known), got=repr(value))
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError("temperature", expected="a number above 0", got=temperature)
    _check_teacher(logits, teacher, frame_lengths)
    if selected is None:
        frames = int(teacher.entry_offsets.shape[0]) - 1
        selected = torch.ones(frames, dtype=torch.bool, device=logits.device)
    else:
        check_column("selected", selected, (len(teacher.entry_offsets) - 1,), torch.bool, logits)
    frame_mask = selected
    kernel = load_kernel(name, "distill", "divergence_and_gradient")

    def compute(detached: Tensor) -> LossAndGradient:
        loss, gradient = kernel(
            detached, teacher, frame_lengths, frame_mask, divergence, tail, temperature
        )
        return loss, gradient

    return differentiable_loss(logits, compute)


def _check_teacher(logits: Tensor, teacher: SparsePosteriors, frame_lengths: Tensor) -> None:
    batch, frames, vocab_size = logits.shape
    if teacher.vocab_size != vocab_size:
        raise ShapeError("the teacher's tokens", expected=vocab_size, got=teacher.vocab_size)
    check_column("frame_lengths", frame_lengths, (batch,), torch.int64, logits)
    check_column("teacher.frame_offsets", teacher.frame_offsets, (batch + 1,), torch.int64, logits)
    check_column("teacher.entry_offsets", teacher.entry_offsets, (None,), torch.int64, logits)
    check_column("teacher.tokens", teacher.tokens, (None,), torch.int32, logits)
    if len(teacher.entry_offsets) < 1:
        raise ShapeError("teacher.entry_offsets", expected="at least one", got="none")
    ends = {
        "frame_offsets": (teacher.frame_offsets, len(teacher.entry_offsets) - 1),
        "entry_offsets": (teacher.entry_offsets, len(teacher.tokens)),
    }
    problems = {
        f"teacher.{name} that do not rise from 0 to {end}": torch.cat(
            [offsets[:1] != 0, offsets[-1:] != end, offsets.diff() < 0]
        )
        for name, (offsets, end) in ends.items()
    }
    problems[f"a teacher token outside [0, {vocab_size})"] = (teacher.tokens < 0) | (
        teacher.tokens >= vocab_size
    )
    problems[f"frame_lengths outside [0, {frames}], the logits' frames"] = (frame_lengths < 0) | (
        frame_lengths > frames
    )
    problems["frame_lengths beyond the teacher's frames"] = frame_lengths > teacher.frame_lengths
    refuse_any(problems)
