"""CTC loss and gradient through torch's own `ctc_loss`, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ctc_loss_and_gradient(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    blank_index: int,
) -> tuple[Tensor, Tensor]:
    """Loss `(B,)` and its gradient on the logits `(B, T, V)`; float64 logits stay float64.

    torch's own gradient of an impossible utterance is NaN; `differentiable_loss` zeroes it.
    """
    _, frames, vocab_size = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    device = logits.device
    inside = torch.arange(targets.shape[1], device=device) < target_lengths[:, None]
    repeated = (targets[:, 1:] == targets[:, :-1]) & inside[:, 1:]
    needed_frames = target_lengths + repeated.sum(1)
    impossible = needed_frames > frame_lengths
    without_frames = frame_lengths == 0
    if frames == 0 or len(logits) == 0 or vocab_size == 1:
        return _one_way(logits.to(dtype), frame_lengths, impossible)

    with torch.enable_grad():
        log_probs = logits.to(dtype).log_softmax(-1).requires_grad_()
        loss = F.ctc_loss(
            log_probs.transpose(0, 1),
            F.pad(targets.masked_fill(~inside, blank_index), (0, 1), value=blank_index),
            frame_lengths.clamp(min=1),
            target_lengths,
            blank=blank_index,
            reduction="none",
        )
        # What torch calls the gradient on log-probabilities, softmax less occupancy, is the one
        # on logits already: its rows sum to 0, so log_softmax's backward would not change it.
        (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    padding = torch.arange(frames, device=device) >= frame_lengths[:, None]
    gradient = gradient.masked_fill_(padding[:, :, None] | (log_probs == -torch.inf), 0)
    loss = torch.where(impossible, torch.inf, loss.detach())
    return loss.masked_fill(without_frames & ~impossible, 0), gradient


def _one_way(logits: Tensor, frame_lengths: Tensor, impossible: Tensor) -> tuple[Tensor, Tensor]:
    """No frames, no utterances or only the blank: one alignment of probability 1, or none."""
    loss = torch.where(impossible, torch.inf, 0.0)
    return loss, torch.zeros_like(logits)
