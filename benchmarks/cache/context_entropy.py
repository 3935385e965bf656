"""What an arithmetic coder with simple contexts would reach on a store's columns.

The code length of a sequence whose symbol probabilities are learnt on the way, per context, has a
closed form in the final counts: with n_i of m symbols and n in all, after adding a to each count,
log2 [Gamma(n + m a) / Gamma(m a)] - sum_i log2 [Gamma(n_i + a) / Gamma(a)]. The best a of four is
taken. What the counts cost to learn is therefore included.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
ADDED = (0.5, 0.1, 0.02, 0.005)


def adaptive_bytes(symbols: Array, contexts: Array, symbol_count: int) -> float:
    """Bytes of a sequence of symbols, each coded with the counts of its context so far."""
    pairs, pair_counts = np.unique(contexts * symbol_count + symbols, return_counts=True)
    context_counts = np.unique(contexts, return_counts=True)[1]
    del pairs
    n_pairs = torch.from_numpy(pair_counts).double()
    n_contexts = torch.from_numpy(context_counts).double()
    nats = []
    for added in ADDED:
        start = symbol_count * added
        whole = (torch.lgamma(n_contexts + start) - math.lgamma(start)).sum()
        nats.append(float(whole - (torch.lgamma(n_pairs + added) - math.lgamma(added)).sum()))
    return min(nats) / math.log(2) / 8


def context_estimates(
    columns: dict[str, Array], utterance_starts: Array, *, levels: int, vocab_size: int
) -> dict[str, tuple[float, float]]:
    """Bytes without and with contexts of each column of a part of version 2.

    The contexts: for the blank's code the previous frame's; for a frame's first token the last
    first token before it and whether that was in the previous frame; for a later token the frame's
    first; for a fraction's code its rank (to 4) and the blank's code.

    Args:
        columns: `blank`, `token` and `fraction` with continuation bits.
        utterance_starts: First frame of each utterance, rising.
        levels: Of the quantiser, without continuation bits.
        vocab_size: V.
    """
    blank, token, fraction = (
        columns[name].astype(np.int64) for name in ("blank", "token", "fraction")
    )
    frames = len(blank)
    previous = np.concatenate([[2 * levels], blank[:-1]])
    previous[utterance_starts] = 2 * levels

    ends = fraction < levels
    is_first = np.concatenate([[True], ends[:-1]])
    firsts = np.flatnonzero(is_first)
    owners = np.flatnonzero(blank >= levels)  # the frame of each first token
    group = np.cumsum(is_first) - 1
    rank = np.arange(len(token)) - firsts[group]
    before = np.concatenate([[vocab_size], token[firsts][:-1]])
    is_near = np.concatenate([[False], np.diff(owners) == 1])
    utterance = np.searchsorted(utterance_starts, owners, side="right")
    is_same = np.concatenate([[False], np.diff(utterance) == 0])
    first_context = np.where(is_same, 2 * before + is_near, 2 * vocab_size)
    token_context = np.where(
        is_first, first_context[group], 2 * vocab_size + 1 + token[firsts][group]
    )
    fraction_context = np.minimum(rank, 3) * 2 * levels + blank[owners][group]
    none, none_entry = np.zeros(frames, dtype=np.int64), np.zeros(len(token), dtype=np.int64)
    return {
        "blank": (
            adaptive_bytes(blank, none, 2 * levels),
            adaptive_bytes(blank, previous, 2 * levels),
        ),
        "token": (
            adaptive_bytes(token, none_entry, vocab_size),
            adaptive_bytes(token, token_context, vocab_size),
        ),
        "fraction": (
            adaptive_bytes(fraction, none_entry, 2 * levels),
            adaptive_bytes(fraction, fraction_context, 2 * levels),
        ),
    }
