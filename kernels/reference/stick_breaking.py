"""Stick-breaking, frame by frame: which tokens stay, their fractions, and the way back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Frame = tuple[float, list[tuple[int, float]], int]


def stick_breaking_topk(
    log_probs: Tensor, *, max_tokens: int, mass: float, blank_index: int
) -> list[Frame]:
    """Of each frame the blank's probability, `(token, fraction)` of the kept, the best token."""
    frames: list[Frame] = []
    for row in log_probs.double().tolist():
        total = math.fsum(math.exp(value) for value in row)
        probs = [math.exp(value) / total for value in row]
        ranked = sorted(range(len(row)), key=lambda token: (-row[token], token))
        best = ranked[0]
        others = [token for token in ranked if token != blank_index]
        kept: list[tuple[int, float]] = []
        reached = probs[blank_index]
        for rank, token in enumerate(others[: max_tokens - 1]):
            needed = reached < mass or (rank == 0 and token == best)
            if not needed or probs[token] == 0:
                break
            kept.append((token, probs[token] / math.fsum(probs[t] for t in others[rank:])))
            reached += probs[token]
        frames.append((probs[blank_index], kept, best))
    return frames


def expand(
    blank_codes: NDArray[Any],
    tokens: NDArray[Any],
    fraction_codes: NDArray[Any],
    log_values: NDArray[np.float64],
    log_rests: NDArray[np.float64],
    blank_index: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], bool]:
    """Entry offsets, tokens, log-probs, and whether the continuation bits fit the columns."""
    levels = len(log_values)
    remaining = iter(zip(tokens.tolist(), fraction_codes.tolist(), strict=True))
    offsets, entries = [0], []
    for code in blank_codes.tolist():
        frame = [(blank_index, log_values[code % levels])]
        left = log_rests[code % levels]
        while code >= levels:
            following = next(remaining, None)
            if following is None:
                return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), False
            token, code = following
            frame.append((token, left + log_values[code % levels]))
            left += log_rests[code % levels]
        if len(frame) > 1 and frame[1][1] > frame[0][1]:
            frame[:2] = frame[1], frame[0]
        entries += frame
        offsets.append(len(entries))
    return (
        np.array(offsets, np.int64),
        np.array([token for token, _ in entries], np.int32),
        np.array([log_prob for _, log_prob in entries], np.float32),
        next(remaining, None) is None,
    )
