"""Guided CTC: the student is paid for the teacher's token at the frames where it spikes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from interkd.kernels.checks import check_logits, check_teacher
from interkd.kernels.selection import select_frames
from interkd.kernels.sparse import SparsePosteriors


def guided_loss(logits: Tensor, teacher: SparsePosteriors, compared_lengths: Tensor) -> Tensor:
    """Minus the student's probability of the teacher's spikes, summed over an utterance's frames.

    `-sum_t q_t(k_t)` over the frames whose most probable teacher token `k_t` is not the blank: the
    probability and not its logarithm, so no divergence and at most 0. Nothing waits for the
    device. B utterances, T frames, V tokens; softmax is inside.

    Args:
        logits: Finite where a frame counts, float32, bfloat16, float16 or float64 `(B, T, V)`; the
            arithmetic is float32 or better, the gradient has the logits' dtype.
        teacher: Cached posteriors of the same B utterances over the same V tokens. The most
            probable token of a frame is its first entry; a frame that keeps none counts as blank.
        compared_lengths: Frames compared, from the first of both sides, int64 `(B,)`. Frames
            beyond it, or beyond either side, do not count: their gradient is 0 whatever they hold.

    Returns:
        float32 `(B,)`, exactly 0 for an utterance without spikes.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, or the vocabularies differ.

    Source: Kurata & Audhkhasi 2019, arXiv 1904.08311; docs/maths.md.
    """
    check_logits((logits,))
    check_teacher(logits, teacher, compared_lengths, check_values=False)
    token, spiking = _spikes(teacher, logits.shape[1])
    frame = torch.arange(logits.shape[1], device=logits.device)
    counted = spiking & (frame < compared_lengths[:, None])
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = torch.where(counted[:, :, None], scores, 0.0)
    log_probs = scores.log_softmax(2).gather(2, token[:, :, None])[:, :, 0]
    return -torch.where(counted, log_probs.exp(), 0.0).sum(1).float()


def _spikes(teacher: SparsePosteriors, frames: int) -> tuple[Tensor, Tensor]:
    """Most probable tokens, int64 `(B, T)`, and where they are the teacher's and not blank."""
    # One spare entry and one spare frame stand for all that the teacher does not have.
    first = F.pad(teacher.tokens.long(), (0, 1))[teacher.entry_offsets[:-1]]
    spiking = select_frames(teacher, "non-blank")
    frame = torch.arange(frames, device=teacher.tokens.device)
    row = (teacher.frame_offsets[:-1, None] + frame).clamp(max=len(spiking))
    within = frame < teacher.frame_lengths[:, None]
    return F.pad(first, (0, 1))[row], F.pad(spiking, (0, 1))[row] & within
