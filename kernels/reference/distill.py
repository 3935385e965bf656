"""Sparse divergence and its gradient, plain: one frame after the other in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interkd.kernels.sparse import SparsePosteriors

Float64 = NDArray[np.float64]


def divergence_and_gradient(
    logits: Tensor,
    teacher: SparsePosteriors,
    frame_lengths: Tensor,
    selected: Tensor,
    divergence: str,
    tail: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Loss `(B,)` and its gradient on the logits `(B, T, V)`, both float64."""
    values = logits.detach().double().cpu().numpy()
    frame_offsets = teacher.frame_offsets.tolist()
    entry_offsets = teacher.entry_offsets.tolist()
    tokens = teacher.tokens.cpu().numpy()
    log_probs = teacher.log_probs.cpu().numpy().astype(np.float64)
    keep = selected.tolist()
    loss = np.zeros(len(values))
    gradient = np.zeros(values.shape)
    for b, frames in enumerate(frame_lengths.tolist()):
        for t in range(frames):
            n = frame_offsets[b] + t
            if keep[n]:
                entries = slice(entry_offsets[n], entry_offsets[n + 1])
                with np.errstate(divide="ignore", invalid="ignore"):
                    frame_loss, gradient[b, t] = frame_divergence(
                        values[b, t],
                        tokens[entries],
                        log_probs[entries],
                        divergence,
                        tail,
                        temperature,
                    )
                loss[b] += frame_loss
    device = logits.device
    return torch.from_numpy(loss).to(device), torch.from_numpy(gradient).to(device)


def frame_divergence(
    logits: Float64,
    tokens: NDArray[np.int32],
    log_probs: Float64,
    divergence: str,
    tail: str,
    temperature: float,
) -> tuple[float, Float64]:
    """Divergence of one frame and its gradient `(V,)`; docs/maths.md sections 2 to 4."""
    vocab_size = len(logits)
    kept = np.zeros(vocab_size, dtype=bool)
    kept[tokens] = True
    rest = vocab_size - len(tokens)
    tail_mass = max(0.0, 1.0 - np.exp(log_probs).sum())

    # Members of each class, one row a class; a class's logit is log-sum-exp over its members.
    one_token = np.eye(vocab_size, dtype=bool)
    if tail == "uniform":
        members = one_token
        teacher = np.full(vocab_size, np.log(tail_mass / rest) if rest else -np.inf)
        teacher[tokens] = log_probs
    elif tail == "bucket" and rest:
        members = np.concatenate([one_token[tokens], ~kept[None]])
        teacher = np.append(log_probs, np.log(tail_mass))
    else:
        members = one_token[tokens]
        teacher = log_probs
    if not len(teacher) or teacher.max() == -np.inf:
        return 0.0, np.zeros(vocab_size)

    class_logits = np.array([_log_sum_exp(logits[row]) for row in members])
    log_p = _log_softmax(teacher / temperature)
    log_q = _log_softmax(class_logits / temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    if divergence == "kl":
        loss = sum(p[c] * (log_p[c] - log_q[c]) for c in range(len(p)) if p[c] > 0)
        class_gradient = (q - p) / temperature
    else:
        loss = ((p - q) ** 2).sum()
        class_gradient = 2 * q * ((q - p) - (q * (q - p)).sum()) / temperature

    gradient = np.zeros(vocab_size)
    for row, class_logit, slope in zip(members, class_logits, class_gradient, strict=True):
        if class_logit != -np.inf:
            gradient[row] += slope * np.exp(logits[row] - class_logit)
    return float(loss), gradient


def _log_sum_exp(values: Float64) -> float:
    peak = values.max()
    if peak == -np.inf:
        return -np.inf
    return float(peak + np.log(np.exp(values - peak).sum()))


def _log_softmax(values: Float64) -> Float64:
    shifted = values - values.max()
    result: Float64 = shifted - np.log(np.exp(shifted).sum())
    return result
