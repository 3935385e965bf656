"""Adaptive top-k: the fewest tokens of a frame that carry the mass asked for, and the blank."""

from __future__ import annotations

import torch
from torch import Tensor

from interkd.kernels.errors import ConfigError, ShapeError

_ELEMENTS_AT_ONCE = 1 << 22  # 32 MiB of 64-bit sort keys


def adaptive_topk(
    log_probs: Tensor, *, max_tokens: int, mass: float, blank_index: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps the fewest most probable tokens of each frame whose probabilities reach `mass`.

    The blank is always kept: it joins a frame that has fewer than `max_tokens`, and replaces the
    least probable token of one that has as many. Equal log-probabilities are ordered by token,
    lower first, on every device. N frames, V tokens, E entries in all.

    Args:
        log_probs: Natural logarithms of a distribution per frame, floating `(N, V)`.
        max_tokens: Most entries of a frame, at least 1; V may be smaller.
        mass: Probability to reach, above 0 and at most 1.
        blank_index: Index of the blank.

    Returns:
        Entries of each frame, int64 `(N,)`; their tokens, int32 `(E,)`, in each frame the most
        probable first and the others rising; their log-probabilities, float32 `(E,)`.

    Raises:
        ShapeError: Unless `log_probs` is floating `(N, V)` with the blank among V, free of NaN.
        ConfigError: If `max_tokens` or `mass` is out of range.

    Source: docs/maths.md section 3.
    """
    if log_probs.ndim != 2 or not log_probs.is_floating_point():
        raise ShapeError(
            "log_probs",
            expected="floating (N, V)",
            got=f"{tuple(log_probs.shape)} of {log_probs.dtype}",
        )
    frames, vocab_size = log_probs.shape
    if not 0 <= blank_index < vocab_size:
        raise ShapeError("blank_index", expected=f"in [0, {vocab_size})", got=blank_index)
    if max_tokens < 1:
        raise ConfigError("max_tokens", expected="1 or more", got=max_tokens)
    if not 0 < mass <= 1:
        raise ConfigError("mass", expected="above 0 and at most 1", got=mass)

    step = max(1, _ELEMENTS_AT_ONCE // vocab_size)
    most = min(max_tokens, vocab_size)
    blocks = [
        _keep(log_probs[start : start + step].float(), most, mass, blank_index)
        for start in range(0, max(1, frames), step)
    ]
    counts, tokens, values = (torch.cat(column) for column in zip(*blocks, strict=True))
    return counts, tokens, values


def _keep(
    log_probs: Tensor, max_tokens: int, mass: float, blank_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    vocab_size = log_probs.shape[1]
    if log_probs.isnan().any():
        raise ShapeError("log_probs", expected="a distribution per frame", got="NaN")
    best = _rank_keys(log_probs).topk(max_tokens, dim=1).values
    tokens = vocab_size - 1 - (best & 0xFFFFFFFF)
    probs = log_probs.gather(1, tokens).double().exp()
    kept = torch.ones_like(probs, dtype=torch.bool)
    kept[:, 1:] = probs.cumsum(1)[:, :-1] < mass
    counts = kept.sum(1)

    # The blank, where it is not among the kept, takes the next place or the last.
    without_blank = ((tokens == blank_index) & kept).sum(1) == 0
    place = counts.clamp(max=max_tokens - 1)[:, None]
    here = without_blank[:, None] & (torch.arange(max_tokens, device=place.device) == place)
    tokens = tokens.masked_fill(here, blank_index)
    kept = kept | here

    # The most probable stays first, so that it is known whatever rounds the probabilities later;
    # the others rise, which compresses best.
    keys = tokens.masked_fill(~kept, vocab_size)
    keys[:, 0] = -1
    order = keys.sort(dim=1).indices
    tokens, kept = tokens.gather(1, order), kept.gather(1, order)
    return kept.sum(1), tokens[kept].int(), log_probs.gather(1, tokens)[kept]


def _rank_keys(log_probs: Tensor) -> Tensor:
    """Distinct int64 keys `(N, V)` that rank by log-probability, then by the lower token.

    torch.topk leaves the order of equal values open; equal keys do not occur. A float32's bits,
    read as an integer with the magnitude of negative values flipped, sort as the float does.
    """
    bits = (log_probs + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    vocab_size = log_probs.shape[1]
    return rank | torch.arange(vocab_size - 1, -1, -1, device=log_probs.device)
