"""CTC loss per utterance, from logits, with the same meaning on every backend."""

from __future__ import annotations

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
from interkd.kernels.errors import ShapeError


def ctc_loss(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank_index: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Negative log-probability of each transcript, summed over its alignments, in nats.

    `-log sum_paths prod_t softmax(logits)[t, path_t]` over the paths that collapse to the
    transcript. B utterances, T frames, V tokens, U target tokens; softmax is inside. Frames
    beyond `frame_lengths` are never read and get a gradient of exactly 0.

    Args:
        logits: float32, bfloat16, float16 or float64 `(B, T, V)`; the arithmetic is float32 or
            better, the gradient has the logits' dtype.
        targets: int64 `(B, U)`, padded with anything beyond `target_lengths`.
        frame_lengths: int64 `(B,)`, each at most T.
        target_lengths: int64 `(B,)`, each at most U.
        blank_index: Index of the blank.
        backend: `auto` (numba on a CPU, torch elsewhere), `reference`, `numba` or `torch`.

    Returns:
        float32 `(B,)`: `inf` (with an exactly zero gradient) for an utterance without any
        possible alignment, 0 for one without frames and targets, NaN for one with a NaN or +inf
        logit, or only -inf logits, in a valid frame.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, a length is out of range, or a
            target is the blank or outside `[0, V)`.
        BackendError: If the backend is unknown or cannot run on the logits' device.

    Source: Graves et al. 2006, section 4; docs/maths.md sections 1 and 5.
    """
    check_logits(logits)
    name = resolve_backend(backend, logits.device)
    _check_targets(logits, targets, frame_lengths, target_lengths, blank_index)
    kernel = load_kernel(name, "ctc", "ctc_loss_and_gradient")

    def compute(detached: Tensor) -> LossAndGradient:
        loss, gradient = kernel(detached, targets, frame_lengths, target_lengths, blank_index)
        return loss, gradient

    return differentiable_loss(logits, compute)


def _check_targets(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    blank_index: int,
) -> None:
    batch, frames, vocab_size = logits.shape
    check_column("targets", targets, (batch, None), torch.int64, logits)
    check_column("frame_lengths", frame_lengths, (batch,), torch.int64, logits)
    check_column("target_lengths", target_lengths, (batch,), torch.int64, logits)
    if not 0 <= blank_index < vocab_size:
        raise ShapeError("blank_index", expected=f"in [0, {vocab_size})", got=blank_index)
    width = targets.shape[1]
    inside = torch.arange(width, device=targets.device) < target_lengths[:, None]
    refuse_any(
        {
            f"frame_lengths outside [0, {frames}], the logits' frames": (frame_lengths < 0)
            | (frame_lengths > frames),
            f"target_lengths outside [0, {width}], the targets' width": (target_lengths < 0)
            | (target_lengths > width),
            f"a target outside [0, {vocab_size}), the logits' tokens": inside
            & ((targets < 0) | (targets >= vocab_size)),
            f"a target equal to the blank ({blank_index})": inside & (targets == blank_index),
        }
    )
