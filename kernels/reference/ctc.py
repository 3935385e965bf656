"""CTC loss and gradient, plain: the log-domain forward-backward recursion in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float64 = NDArray[np.float64]


def ctc_loss_and_gradient(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    blank_index: int,
) -> tuple[Tensor, Tensor]:
    """Loss `(B,)` and its gradient on the logits `(B, T, V)`, both float64."""
    values = logits.detach().double().cpu().numpy()
    loss = np.zeros(len(values))
    gradient = np.zeros(values.shape)
    for b, (frames, tokens) in enumerate(
        zip(frame_lengths.tolist(), target_lengths.tolist(), strict=True)
    ):
        labels = targets[b, :tokens].cpu().numpy()
        loss[b], gradient[b, :frames] = _utterance(values[b, :frames], labels, blank_index)
    device = logits.device
    return torch.from_numpy(loss).to(device), torch.from_numpy(gradient).to(device)


def _utterance(
    logits: Float64, labels: NDArray[np.int64], blank_index: int
) -> tuple[float, Float64]:
    """Loss and gradient `(T, V)` of one utterance; docs/maths.md section 1 has the equations."""
    frames = len(logits)
    repeats = int((labels[1:] == labels[:-1]).sum())
    if len(labels) + repeats > frames:
        return np.inf, np.zeros_like(logits)
    if frames == 0:
        return 0.0, np.zeros_like(logits)

    states = np.full(2 * len(labels) + 1, blank_index)
    states[1::2] = labels
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        emitted = log_probs[:, states]
        alpha = _alpha(emitted, states, blank_index)
        # Beta is alpha of the reversed utterance, less the frame's own emission.
        beta = _alpha(emitted[::-1, ::-1], states[::-1], blank_index)[::-1, ::-1]
        log_likelihood = np.logaddexp.reduce(alpha[-1, -2:])
        if log_likelihood == -np.inf:
            return np.inf, np.zeros_like(logits)
        both = alpha + beta - np.where(emitted == -np.inf, 0.0, emitted)
        occupancy = np.exp(both - log_likelihood)
        gradient = np.exp(log_probs)
    for s, token in enumerate(states):
        gradient[:, token] -= occupancy[:, s]
    return float(-log_likelihood), gradient


def _alpha(emitted: Float64, states: NDArray[np.int64], blank_index: int) -> Float64:
    """Log-probability `(T, S)` of being in state s at frame t, the frame's emission included."""
    alpha = np.full(emitted.shape, -np.inf)
    alpha[0, :2] = emitted[0, :2]
    for t in range(1, len(emitted)):
        for s in range(len(states)):
            ways = [alpha[t - 1, s]]
            if s >= 1:
                ways.append(alpha[t - 1, s - 1])
            if s >= 2 and states[s] not in (blank_index, states[s - 2]):
                ways.append(alpha[t - 1, s - 2])
            alpha[t, s] = np.logaddexp.reduce(ways) + emitted[t, s]
    return alpha
