"""Sparse frames in numbers: what they leave out, their entropy, how far two of them are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interkd.pipeline.cache.layout import Expanded

# Float32 log-probabilities do not tell smaller remainders of 1 apart.
LEAST_REST = 1e-7

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def frame_of_entries(expanded: Expanded) -> Int64:
    """The frame of each entry, `(E,)`."""
    counts = np.diff(expanded.entry_offsets)
    return np.repeat(np.arange(len(counts)), counts)


def probabilities(expanded: Expanded) -> tuple[Float64, Float64]:
    """Kept probabilities `(E,)` and each frame's rest `(N,)`, which sum to one in every frame.

    A frame of version 1 whose rounded probabilities exceed one is divided by their sum.
    """
    frames, count = frame_of_entries(expanded), len(expanded.entry_offsets) - 1
    probs = np.exp(expanded.log_probs.astype(np.float64))
    sums = np.bincount(frames, weights=probs, minlength=count)
    return probs / np.maximum(sums, 1.0)[frames], np.maximum(1.0 - sums, 0.0)


def entropies(expanded: Expanded) -> Float64:
    """Entropy of each frame's kept tokens and its rest as one more class, in nats, `(N,)`."""
    probs, rest = probabilities(expanded)
    terms = -probs * np.log(np.maximum(probs, np.finfo(np.float64).tiny))
    kept = np.bincount(frame_of_entries(expanded), weights=terms, minlength=len(rest))
    entropy: Float64 = kept - rest * np.log(np.maximum(rest, np.finfo(np.float64).tiny))
    return entropy


def best_tokens(expanded: Expanded) -> Int64:
    """Most probable token of each frame, `(N,)`: its first entry, the teacher's own argmax."""
    return expanded.tokens[expanded.entry_offsets[:-1]].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class FrameDistances:
    """How far the frames of one side are from those of the other; N frames.

    The classes are the tokens that both sides keep, and all else as one bucket.

    Attributes:
        divergence: KL(left || right) over the classes, in nats, `(N,)`.
        reverse: KL(right || left), `(N,)`.
        largest: Largest difference of a class's probability, `(N,)`.
    """

    divergence: Float64
    reverse: Float64
    largest: Float64


def bucket_distances(left: Float64, right: Float64, frames: Int64, count: int) -> FrameDistances:
    """Distances from the probabilities of shared tokens.

    The bucket of a side is 1 minus its shared tokens, at least `LEAST_REST`; then the classes are
    divided by their sum, so both divergences are finite and at least 0.

    Args:
        left: Probability of each shared token on the left, above 0, `(E,)`.
        right: The same on the right.
        frames: Frame of each, `(E,)`.
        count: N.
    """
    left, left_rest = _classes(left, frames, count)
    right, right_rest = _classes(right, frames, count)
    largest = np.abs(left_rest - right_rest)
    np.maximum.at(largest, frames, np.abs(left - right))
    logs, rest_logs = np.log(left / right), np.log(left_rest / right_rest)
    divergence = np.bincount(frames, weights=left * logs, minlength=count)
    reverse = np.bincount(frames, weights=right * -logs, minlength=count)
    # Rounding may leave the last digit below 0.
    return FrameDistances(
        divergence=np.maximum(divergence + left_rest * rest_logs, 0.0),
        reverse=np.maximum(reverse - right_rest * rest_logs, 0.0),
        largest=largest,
    )


def _classes(probs: Float64, frames: Int64, count: int) -> tuple[Float64, Float64]:
    sums = np.bincount(frames, weights=probs, minlength=count)
    rest = np.maximum(1.0 - sums, LEAST_REST)
    totals = sums + rest
    return probs / totals[frames], rest / totals


@dataclass(frozen=True, kw_only=True)
class FrameComparison:
    """Frames of two stores side by side, N of them.

    Attributes:
        distances: How far they are apart.
        same_tokens: Whether the same tokens are kept, `(N,)`.
        identical: Whether, besides, every probability is the same to the last bit, `(N,)`.
    """

    distances: FrameDistances
    same_tokens: Bools
    identical: Bools


def compare_frames(left: Expanded, right: Expanded, vocab_size: int) -> FrameComparison:
    """Compares the same N frames of two stores over one vocabulary, whatever their versions."""
    count = len(left.entry_offsets) - 1
    keys, at_left, at_right = np.intersect1d(
        frame_of_entries(left) * vocab_size + left.tokens,
        frame_of_entries(right) * vocab_size + right.tokens,
        assume_unique=True,
        return_indices=True,
    )
    frames = keys // vocab_size
    shared = np.bincount(frames, minlength=count)
    same_tokens = (shared == np.diff(left.entry_offsets)) & (shared == np.diff(right.entry_offsets))
    left_log_probs, right_log_probs = left.log_probs[at_left], right.log_probs[at_right]
    unlike = np.bincount(frames[left_log_probs != right_log_probs], minlength=count)
    return FrameComparison(
        distances=bucket_distances(
            np.exp(left_log_probs.astype(np.float64)),
            np.exp(right_log_probs.astype(np.float64)),
            frames,
            count,
        ),
        same_tokens=same_tokens,
        identical=same_tokens & (unlike == 0),
    )
