"""Adaptive top-k, plain: each frame's tokens sorted and taken one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def adaptive_topk(
    log_probs: Tensor, *, max_tokens: int, mass: float, blank_index: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Kept entries per frame, tokens and log-probabilities, as `kernels.topk.adaptive_topk`."""
    counts: list[int] = []
    tokens: list[int] = []
    values: list[float] = []
    for frame in log_probs.float().tolist():
        order = sorted(range(len(frame)), key=lambda v: (-frame[v], v))
        kept: list[int] = []
        reached = 0.0
        for token in order[:max_tokens]:
            if kept and reached >= mass:
                break
            kept.append(token)
            reached += math.exp(frame[token])
        if blank_index not in kept:
            kept = [*kept[: max_tokens - 1], blank_index]
        kept = [kept[0], *sorted(kept[1:])]
        counts.append(len(kept))
        tokens += kept
        values += [frame[token] for token in kept]
    return (
        torch.tensor(counts, dtype=torch.int64),
        torch.tensor(tokens, dtype=torch.int32),
        torch.tensor(values, dtype=torch.float32),
    )
