"""Sparse frames out of stick-breaking codes, in one pass without the interpreter lock."""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
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
    frames, entries = len(blank_codes), len(tokens)
    offsets = np.empty(frames + 1, np.int64)
    out_tokens = np.empty(frames + entries, np.int32)
    out_log_probs = np.empty(frames + entries, np.float32)
    entry = place = 0
    offsets[0] = 0
    for frame in range(frames):
        code = np.int64(blank_codes[frame])
        more = code >= levels
        code -= levels * more
        blank_place = place
        out_tokens[place] = blank_index
        out_log_probs[place] = log_values[code]
        blank_log_prob = log_values[code]
        left = log_rests[code]
        place += 1
        while more:
            if entry >= entries:
                return offsets, out_tokens, out_log_probs, False
            code = np.int64(fraction_codes[entry])
            more = code >= levels
            code -= levels * more
            log_prob = left + log_values[code]
            out_tokens[place] = tokens[entry]
            out_log_probs[place] = log_prob
            if place == blank_place + 1 and log_prob > blank_log_prob:
                out_tokens[blank_place] = tokens[entry]
                out_log_probs[blank_place] = log_prob
                out_tokens[place] = blank_index
                out_log_probs[place] = blank_log_prob
            left += log_rests[code]
            entry += 1
            place += 1
        offsets[frame + 1] = place
    return offsets, out_tokens, out_log_probs, entry == entries
