"""Greedy CTC decoding of whole batches: argmax, collapse repeats, drop blanks."""

from __future__ import annotations

import torch
from torch import Tensor

from interkd.kernels.errors import ShapeError


def greedy_decode(scores: Tensor, frame_lengths: Tensor, *, blank_index: int) -> list[list[int]]:
    """Tokens of the best path of each utterance.

    The argmax and the collapse run on the device of `scores`; one transfer brings the answer back.
    B utterances, T frames, V tokens.

    Args:
        scores: Logits or log-probabilities `(B, T, V)`; only their order within a frame matters,
            and of equal scores the lowest token wins.
        frame_lengths: Valid frames, integers `(B,)`, each at most T.
        blank_index: Index of the blank.

    Returns:
        One list of token indices an utterance, empty where every frame is blank.

    Raises:
        ShapeError: If the shapes do not fit or the blank is outside the vocabulary.

    Source: Graves et al. 2006, section 3.2 (best path decoding).
    """
    if scores.ndim != 3 or frame_lengths.shape != scores.shape[:1]:
        raise ShapeError(
            "greedy_decode",
            expected="scores (B, T, V) and frame_lengths (B,)",
            got=f"{tuple(scores.shape)} and {tuple(frame_lengths.shape)}",
        )
    if not 0 <= blank_index < scores.shape[2]:
        raise ShapeError("blank_index", expected=f"0 to {scores.shape[2] - 1}", got=blank_index)
    best = scores.argmax(dim=2)
    frames = torch.arange(best.shape[1], device=best.device)
    starts_run = torch.ones_like(best, dtype=torch.bool)
    starts_run[:, 1:] = best[:, 1:] != best[:, :-1]
    is_valid = frames < frame_lengths.to(best.device)[:, None]
    kept = torch.where(starts_run & is_valid & (best != blank_index), best, -1)
    return [row[row >= 0].tolist() for row in kept.to(torch.int32).cpu().numpy()]
