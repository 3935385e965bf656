"""The teacher's side of a divergence on the CPU: class probabilities, once for all heads."""
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from interkd.kernels._numba.softmax import FAST, exp_float64

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_SMALLEST_MASS = 1e-200
_FRAMES_AT_ONCE = 256

BUCKET, UNIFORM, RENORMALISE = 0, 1, 2


@njit(error_model="numpy", cache=True, nogil=True, parallel=True)
def soften_teacher(
    entry_offsets: Int64,
    log_probs: Float32,
    vocab_size: int,
    tail: int,
    temperature: float,
    probs: Float64,
    rests: Float64,
) -> None:
    """Probabilities of the classes at the temperature, and their logarithms.

    Args:
        entry_offsets: `(N + 1,)`.
        log_probs: `(E,)`.
        vocab_size: V.
        tail: BUCKET, UNIFORM or RENORMALISE.
        temperature: Above 0.
        probs: To fill, `(2, E)`: probability of each kept token, and its logarithm.
        rests: To fill, `(2, N)`: likewise of the tail's class, or of each token not kept; a
            probability of -1 marks a frame that compares nothing.
    """
    count = entry_offsets.shape[0] - 1
    blocks = -(-count // _FRAMES_AT_ONCE)
    for block in prange(blocks):
        first = block * _FRAMES_AT_ONCE
        end = min(first + _FRAMES_AT_ONCE, count)
        entries = slice(entry_offsets[first], entry_offsets[end])
        _exponentials(log_probs[entries], probs[0, entries])
        for n in range(first, end):
            _soften_frame(
                entry_offsets[n],
                entry_offsets[n + 1],
                log_probs,
                vocab_size,
                tail,
                temperature,
                probs,
                rests,
                n,
            )


@njit(error_model="numpy", cache=True, fastmath=FAST)
def _exponentials(log_probs: Float32, out: Float64) -> None:
    for j in range(out.shape[0]):
        out[j] = exp_float64(np.float64(log_probs[j]))


@njit(error_model="numpy", cache=True)
def _soften_frame(
    first: int,
    end: int,
    log_probs: Float32,
    vocab_size: int,
    tail: int,
    temperature: float,
    probs: Float64,
    rests: Float64,
    n: int,
) -> None:
    inverse = 1.0 / temperature
    rest = vocab_size - (end - first)
    kept_mass = 0.0
    highest = -np.inf
    for j in range(first, end):
        log_p = np.float64(log_probs[j])
        kept_mass += probs[0, j]
        highest = max(highest, log_p)
    mass = max(0.0, 1.0 - kept_mass)
    log_rest, alike = -np.inf, 1.0
    if rest > 0 and tail != RENORMALISE:
        alike = rest if tail == UNIFORM else 1.0
        log_rest = math.log(mass / alike) if mass > 0 else -np.inf
        highest = max(highest, log_rest)
    if highest == -np.inf:
        rests[0, n] = -1.0
        rests[1, n] = 0.0
        return
    if temperature == 1.0 and kept_mass > _SMALLEST_MASS:
        highest = 0.0
        total = kept_mass if log_rest == -np.inf else kept_mass + mass
    else:
        total = alike * math.exp((log_rest - highest) * inverse)
        for j in range(first, end):
            probs[0, j] = math.exp((np.float64(log_probs[j]) - highest) * inverse)
            total += probs[0, j]
    log_total = math.log(total)
    scale = 1.0 / total
    for j in range(first, end):
        probs[0, j] *= scale
        probs[1, j] = (np.float64(log_probs[j]) - highest) * inverse - log_total
    rests[1, n] = (log_rest - highest) * inverse - log_total
    rests[0, n] = math.exp(rests[1, n])
