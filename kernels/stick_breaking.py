"""Posteriors as stick-breaking fractions: the blank, then token by token a share of the rest.

A frame's distribution is written as the blank's probability b and, token by token, the fraction
f_k = p_k / (1 - b - p_1 - ... - p_(k-1)) of the mass that was left. Whatever rounds the fractions,
the frame stays a distribution: kept and unkept mass are one by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from interkd.kernels.backends import load_kernel
from interkd.kernels.errors import BackendError, ConfigError, ShapeError

_ELEMENTS_AT_ONCE = 1 << 24  # 128 MiB of 64-bit sort keys

Integers = npt.NDArray[np.integer]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StickBreaking:
    """Frames as the blank's probability and the fractions of the tokens kept.

    N frames, K the most non-blank tokens kept of one.

    Attributes:
        blank: Probability of the blank, float64 `(N,)`.
        counts: Non-blank tokens kept, int64 `(N,)`, at most K.
        tokens: Falling in probability, int32 `(N, K)`; past a frame's count they are not kept.
        fractions: Share of each token in the mass that the blank and the tokens before it leave,
            float64 `(N, K)`, 0 to 1.
        best: Most probable token, int32 `(N,)`; of equals the lower.
    """

    blank: Tensor
    counts: Tensor
    tokens: Tensor
    fractions: Tensor
    best: Tensor


def stick_breaking_topk(
    log_probs: Tensor, *, max_tokens: int, mass: float, blank_index: int = 0
) -> StickBreaking:
    """Keeps the blank and the fewest other tokens of each frame whose probabilities reach `mass`.

    The most probable token is always kept, a token of probability 0 never. Equal
    log-probabilities are ordered by token, lower first, on every device. Nothing waits for the
    device, so a row with NaN is not refused: its probabilities are NaN. N frames, V tokens.

    Args:
        log_probs: Natural logarithms of a distribution per frame, floating `(N, V)`; divided by
            their sum in float64.
        max_tokens: Most tokens of a frame with the blank, at least 2; V may be smaller.
        mass: Probability to reach, above 0 and at most 1.
        blank_index: Index of the blank.

    Raises:
        ShapeError: Unless `log_probs` is floating `(N, V)` with V at least 2 and the blank among V.
        ConfigError: If `max_tokens` or `mass` is out of range.

    Source: docs/maths.md section 3.
    """
    if log_probs.ndim != 2 or not log_probs.is_floating_point() or log_probs.shape[1] < 2:
        raise ShapeError(
            "log_probs",
            expected="floating (N, V), V at least 2",
            got=f"{tuple(log_probs.shape)} of {log_probs.dtype}",
        )
    frames, vocab_size = log_probs.shape
    if not 0 <= blank_index < vocab_size:
        raise ShapeError("blank_index", expected=f"in [0, {vocab_size})", got=blank_index)
    if max_tokens < 2:
        raise ConfigError("max_tokens", expected="2 or more", got=max_tokens)
    if not 0 < mass <= 1:
        raise ConfigError("mass", expected="above 0 and at most 1", got=mass)

    step = max(1, _ELEMENTS_AT_ONCE // vocab_size)
    most = min(max_tokens, vocab_size) - 1
    blocks = [
        _break(log_probs[start : start + step].float(), most, mass, blank_index)
        for start in range(0, max(1, frames), step)
    ]
    blank, counts, tokens, fractions, best = (torch.cat(c) for c in zip(*blocks, strict=True))
    return StickBreaking(blank=blank, counts=counts, tokens=tokens, fractions=fractions, best=best)


def _break(
    log_probs: Tensor, most: int, mass: float, blank_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    vocab_size = log_probs.shape[1]
    others = log_probs.clone()
    others[:, blank_index] = -torch.inf
    keys = _rank_keys(others)
    keys[:, blank_index] = torch.iinfo(torch.int64).min
    tokens = vocab_size - 1 - (keys.topk(most, dim=1).values & 0xFFFFFFFF)

    # The mass left is a sum of what is small, never 1 minus what is near 1.
    probs = others.exp_()
    unkept = probs.sum(1, dtype=torch.float64)
    blank_log_probs = log_probs[:, blank_index]
    blank = blank_log_probs.exp().double()
    total = blank + unkept
    values = probs.gather(1, tokens).double()
    before = values.cumsum(1) - values
    left = torch.maximum(unkept[:, None] - before, values)
    fractions = torch.where(left > 0, values / left, left)

    kept = ((blank[:, None] + before) < mass * total[:, None]) & (values > 0)
    first_log_probs = log_probs.gather(1, tokens[:, :1])[:, 0]
    first_is_best = (first_log_probs > blank_log_probs) | (
        (first_log_probs == blank_log_probs) & (tokens[:, 0] < blank_index)
    )
    kept[:, 0] |= first_is_best
    best = torch.where(first_is_best, tokens[:, 0], blank_index)
    counts = kept.long().cumprod(1).sum(1)
    return blank / total, counts, tokens.int(), fractions, best.int()


def _rank_keys(log_probs: Tensor) -> Tensor:
    """Distinct int64 keys `(N, V)` that rank by log-probability, then by the lower token.

    torch.topk leaves the order of equal values open; equal keys do not occur. A float32's bits,
    read as an integer with the magnitude of negative values flipped, sort as the float does.
    """
    bits = (log_probs + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    vocab_size = log_probs.shape[1]
    return rank | torch.arange(vocab_size - 1, -1, -1, device=log_probs.device)


def expand_stick_breaking(
    blank_codes: Integers,
    tokens: Integers,
    fraction_codes: Integers,
    values: Float64,
    *,
    blank_index: int = 0,
    backend: str = "numba",
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Rebuilds sparse frames, the blank among their entries, from codes with continuation bits.

    A code's top bit says that another entry of the same frame follows: after the blank's code its
    first token, after a token's code the next one. N frames, E tokens, L levels.

    Args:
        blank_codes: Code of the blank's probability, uint8 or uint16 `(N,)`.
        tokens: Tokens other than the blank, unsigned `(E,)`.
        fraction_codes: Codes of their fractions, of the dtype of `blank_codes`, `(E,)`.
        values: Probability that each code stands for without its top bit, each above 0 and below
            1, float64 `(L,)`.
        blank_index: Index of the blank.
        backend: `numba` or `reference`.

    Returns:
        Entry offsets int64 `(N + 1,)`; tokens int32 `(N + E,)`, in each frame the most probable
        of the blank and its first token first, the blank of two equals; their natural
        log-probabilities, float32 `(N + E,)`.

    Raises:
        BackendError: For another backend.
        ShapeError: If the continuation bits do not make as many frames and entries as there are.

    Source: docs/cache-format.md.
    """
    if backend not in ("numba", "reference"):
        raise BackendError("backend", expected="numba | reference", got=repr(backend))
    kernel = load_kernel(backend, "stick_breaking", "expand")
    rest = np.log1p(-values)
    offsets, all_tokens, log_probs, is_whole = kernel(
        np.ascontiguousarray(blank_codes),
        np.ascontiguousarray(tokens),
        np.ascontiguousarray(fraction_codes),
        np.log(values),
        rest,
        blank_index,
    )
    if not is_whole:
        raise ShapeError(
            "continuation bits",
            expected=f"{len(tokens)} entries in {len(blank_codes)} frames",
            got="others",
        )
    return offsets, all_tokens, log_probs
