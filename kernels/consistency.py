"""Consistency of two augmented views of an utterance (CR-CTC): each is the other's target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from interkd.kernels.checks import check_column, check_logits
from interkd.kernels.errors import ShapeError


def consistency_loss(logits: Tensor, frame_lengths: Tensor) -> Tensor:
    """Divergence of two views from each other, summed over the frames of an utterance, in nats.

    `1/2 sum_t KL(sg q_a || q_b) + KL(sg q_b || q_a)`, where sg takes the target for a constant: a
    view is drawn to the other, never the other to it. Exactly 0 where both views agree. Rows b and
    B + b are the views of utterance b. Nothing waits for the device. B utterances, T frames, V
    tokens; softmax is inside.

    Args:
        logits: Finite where a frame counts, float32, bfloat16, float16 or float64 `(2B, T, V)`;
            the arithmetic is float32 or better, the gradient has the logits' dtype.
        frame_lengths: Valid frames, int64 `(2B,)`. Frames that are not valid in both views do not
            count: their gradient is 0 whatever they hold.

    Returns:
        float32 `(B,)`, exactly 0 for an utterance without frames.

    Raises:
        ShapeError: If shapes, dtypes or devices do not fit, or the rows are no pairs.

    Source: Yao et al. 2025 (CR-CTC, arXiv 2410.05101); docs/maths.md.
    """
    check_logits((logits,))
    rows, frames, _ = logits.shape
    check_column("frame_lengths", frame_lengths, (rows,), torch.int64, logits)
    if rows % 2:
        raise ShapeError("logits of two views", expected="an even number of rows", got=rows)
    valid_frames = frame_lengths.reshape(2, rows // 2).amin(0)
    valid = torch.arange(frames, device=logits.device) < valid_frames[:, None]
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = torch.where(valid.repeat(2, 1)[:, :, None], scores, 0.0)
    log_q = scores.log_softmax(2)
    target = log_q.detach().roll(rows // 2, 0)
    # A frame that does not count is uniform in both views: exactly 0.
    divergence = F.kl_div(log_q, target, reduction="none", log_target=True).sum(2)
    return divergence.sum(1).reshape(2, rows // 2).sum(0).mul(0.5).float()
